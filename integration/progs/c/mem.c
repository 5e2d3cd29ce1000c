// Memory: every kind of mapping, its protections and its flags.
#include "prog.h"
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#define PAGE 4096UL
#define MAPS (512 * 1024)

// The lines of smaps that describe a mapping, not how much of it is in memory.
// Static: the second look must not make a mapping of its own.
static char raw[4 * MAPS], maps_was[MAPS], maps_is[MAPS];

static bool wanted(const char *line)
{
	static const char *const skip[] = {
		"Size", "KernelPageSize", "MMUPageSize", "Rss", "Pss", "Pss_Dirty", "Pss_Anon", "Pss_File", "Pss_Shmem",
		"Shared_Clean", "Shared_Dirty", "Private_Clean", "Private_Dirty", "Referenced", "Anonymous", "KSM",
		"LazyFree", "AnonHugePages", "ShmemPmdMapped", "FilePmdMapped", "Shared_Hugetlb", "Private_Hugetlb",
		"Swap", "SwapPss", "Locked", "THPeligible", "ProtectionKey",
	};
	for (size_t i = 0; i < sizeof skip / sizeof *skip; i++) {
		size_t n = strlen(skip[i]);
		if (strncmp(line, skip[i], n) == 0 && line[n] == ':')
			return false;
	}
	return true;
}

// anonymise cuts inode and name from the line of a mapping whose file has no name
// any more: a new file stands in for it.
static void anonymise(char *line)
{
	if (!strstr(line, " (deleted)"))
		return;
	for (int fields = 0; *line; line++)
		if (*line == ' ' && ++fields == 4) {
			*line = 0;
			return;
		}
}

// cut takes a flag out of a line of flags.
static void cut(char *line, const char *flag)
{
	char *at = strncmp(line, "VmFlags", 7) == 0 ? strstr(line, flag) : NULL;
	if (at)
		memmove(at, at + 3, strlen(at + 3) + 1);
}

// look copies what should stay the same. The flag "sd", soft-dirty, is not the
// program's: any write sets it; nor is "um", while a lazy restore goes on.
static void look(char *out)
{
	size_t used = 0;
	size_t n = slurp("/proc/self/smaps", raw, sizeof raw);
	if (n >= sizeof raw - 1)
		fail("smaps has %zu bytes, want less", n);
	for (char *save, *line = strtok_r(raw, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		if (!wanted(line))
			continue;
		anonymise(line);
		cut(line, " sd");
		cut(line, " um");
		used += snprintf(out + used, MAPS - used, "%s\n", line);
	}
}

// compare names the first line that differs.
static void compare(void)
{
	look(maps_is);
	char *a = maps_was, *b = maps_is, *sa, *sb;
	a = strtok_r(a, "\n", &sa);
	b = strtok_r(b, "\n", &sb);
	char at[200] = "";
	for (; a && b; a = strtok_r(NULL, "\n", &sa), b = strtok_r(NULL, "\n", &sb)) {
		if (strncmp(a, "VmFlags", 7) != 0)
			snprintf(at, sizeof at, "%s", a);
		if (strcmp(a, b) != 0)
			fail("mapping %s: %s, want %s", at, b, a);
	}
	if (a || b)
		fail("mappings at the end: %s, want %s", b ? b : "none", a ? a : "none");
}

static unsigned char *map(size_t pages, int prot, int flags, int fd)
{
	unsigned char *p = mmap(NULL, pages * PAGE, prot, flags, fd, 0);
	if (p == MAP_FAILED)
		fail("mmap %zu pages prot %d flags %#x: %s", pages, prot, flags, strerror(errno));
	return p;
}

static void fill(unsigned char *p, size_t n, unsigned seed)
{
	for (size_t i = 0; i < n; i++)
		p[i] = (seed + i * 2654435761u) >> 7;
}

static void filled(const char *what, const unsigned char *p, size_t n, unsigned seed)
{
	for (size_t i = 0; i < n; i++)
		if (p[i] != (unsigned char)((seed + i * 2654435761u) >> 7))
			fail("%s, byte %zu: %#x, want %#x", what, i, p[i], (unsigned char)((seed + i * 2654435761u) >> 7));
}

static int file(const char *path, size_t pages)
{
	int fd = must(path, open(path, O_RDWR | O_CREAT | O_TRUNC, 0666));
	unsigned char page[PAGE];
	for (size_t i = 0; i < pages; i++) {
		fill(page, PAGE, 1000 + i);
		must("write", write(fd, page, PAGE));
	}
	return fd;
}

#define RW (PROT_READ | PROT_WRITE)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)

struct area { const char *what; unsigned char *p; size_t pages; int prot; unsigned seed; };

static void protections(char **argv)
{
	(void)argv;
	static struct area a[] = {
		{ "read only", NULL, 3, PROT_READ, 1 }, { "no access", NULL, 5, PROT_NONE, 2 },
		{ "read and execute", NULL, 2, PROT_READ | PROT_EXEC, 3 }, { "execute only", NULL, 1, PROT_EXEC, 4 },
		{ "read and write", NULL, 64, RW, 5 }, { "write only", NULL, 1, PROT_WRITE, 6 },
		{ "everything", NULL, 1, RW | PROT_EXEC, 7 },
	};
	size_t n = sizeof a / sizeof *a;
	for (size_t i = 0; i < n; i++) {
		a[i].p = map(a[i].pages, RW, ANON, -1);
		fill(a[i].p, a[i].pages * PAGE, a[i].seed);
		must("mprotect", mprotect(a[i].p, a[i].pages * PAGE, a[i].prot));
	}
	unsigned char *holes = map(16, RW, ANON, -1); // what was never touched must stay so
	holes[5 * PAGE] = 7;
	must("munmap", munmap(holes + 8 * PAGE, PAGE));
	map(1 << 18, PROT_NONE, ANON | MAP_NORESERVE, -1); // 1 GiB that nobody touched
	unsigned char *zeros = map(8, RW, ANON, -1);
	memset(zeros, 0, 8 * PAGE);
	look(maps_was);
	ready();
	wait_go();
	compare();
	for (size_t i = 0; i < n; i++) {
		must("mprotect", mprotect(a[i].p, a[i].pages * PAGE, RW));
		filled(a[i].what, a[i].p, a[i].pages * PAGE, a[i].seed);
	}
	for (size_t i = 0; i < 8 * PAGE; i++)
		eq("zero page or hole", zeros[i] | holes[i], i == 5 * PAGE ? 7 : 0);
}

static void advice(char **argv)
{
	(void)argv;
	static const struct { const char *what; int advice; } kinds[] = {
		{ "huge", MADV_HUGEPAGE }, { "no huge", MADV_NOHUGEPAGE }, { "mergeable", MADV_MERGEABLE },
		{ "don't dump", MADV_DONTDUMP }, { "don't fork", MADV_DONTFORK }, { "wipe on fork", MADV_WIPEONFORK },
		{ "random", MADV_RANDOM }, { "sequential", MADV_SEQUENTIAL },
	};
	size_t n = sizeof kinds / sizeof *kinds;
	unsigned char *p[16], *locked = map(3, RW, ANON, -1), *onfault = map(3, RW, ANON, -1);
	for (size_t i = 0; i < n; i++) {
		p[i] = map(7, RW, ANON, -1);
		must(kinds[i].what, madvise(p[i], 7 * PAGE, kinds[i].advice));
		fill(p[i], 4 * PAGE, 50 + i);
	}
	fill(locked, 3 * PAGE, 5);
	must("mlock", mlock(locked, 3 * PAGE));
	must("mlock2", mlock2(onfault, 3 * PAGE, MLOCK_ONFAULT));
	must("name", prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, p[0], 7 * PAGE, "a name") == 0 || errno == EINVAL ? 0 : -1);
	look(maps_was);
	ready();
	wait_go();
	compare();
	for (size_t i = 0; i < n; i++)
		filled(kinds[i].what, p[i], 4 * PAGE, 50 + i);
	filled("locked", locked, 3 * PAGE, 5);
}

static void files(char **argv)
{
	(void)argv;
	int fd = file("/ctl/data", 8);
	unsigned char *shared = map(8, RW, MAP_SHARED, fd), *ro = map(8, PROT_READ, MAP_SHARED, fd);
	unsigned char *priv = map(8, RW, MAP_PRIVATE, fd), *clean = map(8, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd);
	unsigned char *part = mmap(NULL, 2 * PAGE, RW, MAP_PRIVATE, fd, 3 * PAGE);
	unsigned char *past = map(10, PROT_READ, MAP_PRIVATE, fd); // two pages behind the end
	int gone = file("/ctl/gone", 4);
	unsigned char *deleted = map(4, RW, MAP_SHARED, gone), *deleted_priv = map(4, RW, MAP_PRIVATE, gone);
	int rofd = must("open", open("/ctl/data", O_RDONLY));
	unsigned char *never = map(2, PROT_READ, MAP_SHARED, rofd); // may never become writable
	must("unlink", unlink("/ctl/gone"));
	close(gone);
	close(rofd);
	close(fd);
	fill(priv + PAGE, PAGE, 9);
	fill(deleted_priv, PAGE, 10);
	must("mprotect", mprotect(priv + 2 * PAGE, PAGE, PROT_READ));
	look(maps_was);
	ready();
	wait_go();
	compare();
	filled("private page that was written", priv + PAGE, PAGE, 9);
	filled("private page of a deleted file", deleted_priv, PAGE, 10);
	for (unsigned i = 0; i < 8; i++) {
		filled("shared page", shared + i * PAGE, PAGE, 1000 + i);
		filled("read only page", ro + i * PAGE, PAGE, 1000 + i);
		filled("clean page", clean + i * PAGE, PAGE, 1000 + i);
		filled("page before the end", past + i * PAGE, PAGE, 1000 + i);
	}
	filled("page of the middle", part + PAGE, PAGE, 1004);
	filled("page of a deleted file", deleted + 3 * PAGE, PAGE, 1003);
	shared[0] = 'S';
	eq("byte seen through another shared mapping", ro[0], 'S');
	eq("byte seen through the file", never[0], 'S');
	eq("mprotect of what may not be written", mprotect(never, PAGE, RW), -1);
}

static void heap(char **argv)
{
	(void)argv;
	unsigned char *start = sbrk(0), *p = sbrk(40 * PAGE + 100);
	fill(p, 40 * PAGE, 21);
	unsigned char *end = sbrk(0);
	look(maps_was);
	ready();
	wait_go();
	compare();
	eq("brk", (long)sbrk(0), (long)end);
	filled("heap", p, 40 * PAGE, 21);
	eq("start of what sbrk gave", (long)p, (long)start);
	eq("next sbrk", (long)sbrk(20 * PAGE), (long)end);
	end[20 * PAGE - 1] = 1;
	eq("brk back", brk(start), 0);
}

static int deep(int n)
{
	volatile char frame[3000];
	frame[0] = n;
	return n == 0 ? frame[0] : deep(n - 1) + frame[0] * 0;
}

// stacks checks that both kinds of downward growth still work.
static void stacks(char **argv)
{
	(void)argv;
	char local[5000];
	fill((void *)local, sizeof local, 33);
	unsigned char *room = map(512, PROT_NONE, ANON, -1);
	must("munmap", munmap(room, 512 * PAGE));
	unsigned char *down = mmap(room + 508 * PAGE, 4 * PAGE, RW, ANON | MAP_GROWSDOWN | MAP_FIXED, -1, 0);
	down[0] = 1;
	fill(down, 4 * PAGE, 34);
	look(maps_was);
	ready();
	wait_go();
	compare();
	filled("stack", (void *)local, sizeof local, 33);
	filled("mapping that grows", down, 4 * PAGE, 34);
	for (int i = 1; i < 40; i++)
		down[-i * (long)PAGE] = i;
	eq("depth", deep(400), 0);
}

// dirty writes all the time, page after page: what a checkpoint takes must be
// one moment. Generations of the pages never rise from one page to the next.
#define DIRTY_PAGES 4096
static volatile int dirty_stop;
static volatile long dirty_rounds;

static void *writer(void *arg)
{
	volatile uint64_t *p = arg;
	const size_t step = PAGE / sizeof *p;
	for (uint64_t gen = 1; !dirty_stop; gen++) {
		for (size_t i = 0; i < DIRTY_PAGES; i++) {
			if (p[i * step] != gen - 1 || p[i * step + 511] != (gen - 1) * 3)
				fail("page %zu: generation %lu and %lu, want %lu", i, p[i * step], p[i * step + 511], gen - 1);
			p[i * step] = gen;
			p[i * step + 511] = gen * 3;
		}
		dirty_rounds++;
	}
	return NULL;
}

static void dirty(char **argv)
{
	(void)argv;
	pthread_t t;
	unsigned char *p = map(DIRTY_PAGES, RW, ANON, -1);
	memset(p, 0, DIRTY_PAGES * PAGE);
	eq("pthread_create", pthread_create(&t, NULL, writer, p), 0);
	while (dirty_rounds < 3)
		usleep(1000);
	ready();
	wait_go();
	long was = dirty_rounds;
	while (dirty_rounds < was + 3)
		usleep(1000);
	dirty_stop = 1;
	pthread_join(t, NULL);
}

// many holds ten thousand mappings.
static void many(char **argv)
{
	(void)argv;
	enum { N = 10000 };
	unsigned char *p = map(2 * N, RW, ANON, -1);
	for (int i = 0; i < 2 * N; i += 2) {
		p[i * PAGE] = i;
		must("mprotect", mprotect(p + i * PAGE, PAGE, PROT_READ));
	}
	ready();
	wait_go();
	for (int i = 0; i < 2 * N; i++)
		eq("first byte of a page", p[i * PAGE], i % 2 ? 0 : (unsigned char)i);
	for (int i = 1; i < 2 * N; i += 2)
		p[i * PAGE] = 1;
}

const struct prog mem_progs[] = {
	{ "protections", protections }, { "advice", advice }, { "mapfiles", files }, { "heap", heap },
	{ "stacks", stacks }, { "dirty", dirty }, { "manymaps", many }, { NULL, NULL },
};
