// Memory that is used, moved, thrown away and inherited the moment after a
// restore, when a lazy one has yet to fill it. Each program has memory in which
// every word says where it belongs.
#include "prog.h"
#include <pthread.h>
#include <sys/uio.h>

#define PAGE 4096UL
#define MIB (1UL << 20)
#define RW (PROT_READ | PROT_WRITE)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)

static size_t pages = 160 * MIB / PAGE;
static unsigned char *area;

// word is what the page of number n holds at word w.
static uint64_t word(uint64_t n, unsigned w)
{
	uint64_t x = (n << 9 | w) * 0x9e3779b97f4a7c15ULL + 1;
	return (x ^ x >> 29) * 0xbf58476d1ce4e5b9ULL;
}

static void fill_page(unsigned char *p, uint64_t n)
{
	for (unsigned w = 0; w < PAGE / 8; w++)
		((uint64_t *)p)[w] = word(n, w);
}

// check_page looks at one word of each part of a page: first, middle, last.
static void check_page(const char *what, const unsigned char *p, uint64_t n)
{
	static const unsigned at[] = { 0, 255, PAGE / 8 - 1 };
	for (unsigned i = 0; i < 3; i++) {
		uint64_t got = ((const volatile uint64_t *)p)[at[i]];
		if (got != word(n, at[i]))
			fail("%s: page %llu at %p word %u: %#llx, want %#llx", what, (unsigned long long)n, (const void *)p, at[i],
			     (unsigned long long)got, (unsigned long long)word(n, at[i]));
	}
}

static void zero_page(const char *what, const unsigned char *p)
{
	for (unsigned w = 0; w < PAGE / 8; w += 51)
		if (((const volatile uint64_t *)p)[w] != 0)
			fail("%s: word %u at %p: %#llx, want 0", what, w, (const void *)p,
			     (unsigned long long)((const volatile uint64_t *)p)[w]);
}

static unsigned char *anon(size_t n)
{
	unsigned char *p = mmap(NULL, n * PAGE, RW, ANON | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		fail("mmap %zu pages: %s", n, strerror(errno));
	return p;
}

// make fills the area and waits for the test.
static void make(char **argv)
{
	if (argv[2])
		pages = atol(argv[2]) * MIB / PAGE;
	area = anon(pages);
	for (size_t i = 0; i < pages; i++)
		fill_page(area + i * PAGE, i);
	ready();
	wait_go();
}

// far visits the numbers below n in an order that jumps; n is no multiple of 7919.
#define FAR(i, n) for (size_t i = 0, left_ = (n); left_ > 0; left_--, i = (i + 7919) % (n))

static void *reader(void *arg)
{
	FAR(i, pages)
		check_page("reader", area + i * PAGE, i);
	return arg;
}

static void touch(char **argv)
{
	make(argv);
	pthread_t t[4];
	for (int i = 0; i < 4; i++)
		eq("pthread_create", pthread_create(&t[i], NULL, reader, NULL), 0);
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
}

// delays prints how long the slowest look at a page took, in us, and all of them.
static void delays(char **argv)
{
	make(argv);
	int64_t begin = now(), worst = 0, first = 0;
	FAR(i, pages) {
		int64_t a = now();
		check_page("delays", area + i * PAGE, i);
		int64_t took = now() - a;
		if (!first)
			first = took;
		if (took > worst)
			worst = took;
	}
	char line[200];
	snprintf(line, sizeof line, "%lld %lld %lld\n", (long long)first / 1000, (long long)worst / 1000,
		 (long long)(now() - begin) / 1000);
	int fd = must("figures", open("/ctl/figures", O_WRONLY | O_CREAT | O_TRUNC, 0666));
	must("figures", write(fd, line, strlen(line)));
	close(fd);
}

// forks: children and their children see what was there at the fork, while the
// parent writes.
static void forks(char **argv)
{
	make(argv);
	for (int c = 0; c < 4; c++) {
		pid_t pid = must("fork", fork());
		if (pid > 0)
			continue;
		pid_t grandchild = must("fork", fork());
		size_t step = grandchild == 0 ? 3 : 1;
		for (size_t i = c; i < pages; i += step)
			check_page(grandchild ? "child" : "grandchild", area + i * PAGE, i);
		if (grandchild == 0)
			_exit(0);
		reap(grandchild);
		_exit(0);
	}
	FAR(i, pages)
		if (i % 2 == 0)
			fill_page(area + i * PAGE, i + 1000000);
	for (int c = 0; c < 4; c++) {
		int status;
		must("wait", wait(&status));
		eq("status of a child", status, 0);
	}
	for (size_t i = 0; i < pages; i++)
		check_page("parent", area + i * PAGE, i % 2 ? i : i + 1000000);
}

// moves: pieces of the area go elsewhere, larger, smaller and onto others.
static void moves(char **argv)
{
	make(argv);
	size_t n = 4 * MIB / PAGE;
	for (size_t at = pages - n; at >= 8 * n; at -= 2 * n) {
		unsigned char *to = mremap(area + at * PAGE, n * PAGE, 2 * n * PAGE, MREMAP_MAYMOVE);
		if (to == MAP_FAILED)
			fail("mremap to twice the size: %s", strerror(errno));
		FAR(i, n)
			check_page("grown", to + i * PAGE, at + i);
		zero_page("grown", to + (2 * n - 1) * PAGE);
		unsigned char *on = area + (at - n) * PAGE; // over pages that are still to come
		if (mremap(to, n / 2 * PAGE, n / 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, on) != on)
			fail("mremap onto others: %s", strerror(errno));
		for (size_t i = 0; i < n / 2; i++)
			check_page("moved on", on + i * PAGE, at + i);
		for (size_t i = n / 2; i < n; i++)
			check_page("not moved on", on + i * PAGE, at - n + i);
		on = mremap(on, n * PAGE / 2, PAGE, 0); // smaller, in place
		if (on == MAP_FAILED)
			fail("mremap to a page: %s", strerror(errno));
	}
	for (size_t i = 0; i < 4 * n; i++)
		check_page("stayed", area + i * PAGE, i);
}

// drops: what is thrown away is zero and stays it; the rest is there.
static void drops(char **argv)
{
	make(argv);
	for (size_t at = pages; at >= 512; at -= 512)
		must("madvise", madvise(area + (at - 256) * PAGE, 256 * PAGE, MADV_DONTNEED));
	FAR(i, pages)
		if (i % 512 < 256)
			check_page("kept", area + i * PAGE, i);
		else
			zero_page("dropped", area + i * PAGE);
	for (size_t i = 256; i < pages; i += 512) {
		fill_page(area + i * PAGE, i + 7);
		must("madvise", madvise(area + i * PAGE, PAGE, i % 1024 < 512 ? MADV_DONTNEED : MADV_NORMAL));
	}
	for (size_t i = 256; i < pages; i += 512)
		if (i % 1024 < 512)
			zero_page("dropped again", area + i * PAGE);
		else
			check_page("written", area + i * PAGE, i + 7);
}

// holes: unmapped memory, and new memory in its place.
static void holes(char **argv)
{
	make(argv);
	for (size_t at = pages; at >= 512; at -= 512) {
		must("munmap", munmap(area + (at - 128) * PAGE, 128 * PAGE));
		unsigned char *p = mmap(area + (at - 64) * PAGE, 64 * PAGE, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0);
		if (p == MAP_FAILED)
			fail("mmap into a hole: %s", strerror(errno));
		p = mmap(area + (at - 256) * PAGE, 64 * PAGE, RW, ANON | MAP_FIXED, -1, 0);
		if (p == MAP_FAILED)
			fail("mmap over others: %s", strerror(errno));
		must("mprotect", mprotect(area + (at - 300) * PAGE, 10 * PAGE, PROT_READ));
	}
	FAR(i, pages) {
		size_t at = i % 512;
		if (at >= 256 && at < 320)
			zero_page("mapped over", area + i * PAGE);
		else if (at >= 448)
			zero_page("mapped anew", area + i * PAGE);
		else if (at < 384)
			check_page("kept", area + i * PAGE, i);
	}
}

static void locks(char **argv)
{
	make(argv);
	size_t n = 6 * MIB / PAGE; // the usual limit is 8 MiB
	unsigned char *p = area + (pages - n) * PAGE, *in = calloc(n, 1);
	must("mlock", mlock(p, n * PAGE));
	must("mincore", mincore(p, n * PAGE, in));
	for (size_t i = 0; i < n; i++) {
		eq("locked page in memory", in[i] & 1, 1);
		check_page("locked", p + i * PAGE, pages - n + i);
	}
	must("munlock", munlock(p, n * PAGE));
}

// calls: system calls that use memory which is still to come.
static void calls(char **argv)
{
	make(argv);
	int fd = must("open", open("/tmp/lazy", O_RDWR | O_CREAT | O_TRUNC, 0600));
	size_t n = MIB / PAGE;
	unsigned char *from = area + (pages - 2 * n) * PAGE, *to = area + (pages - 8 * n) * PAGE;
	eq("write", write(fd, from, n * PAGE), n * PAGE);
	eq("pread", pread(fd, to, n * PAGE, 0), n * PAGE);
	for (size_t i = 0; i < n; i++)
		check_page("read back", to + i * PAGE, pages - 2 * n + i);
	struct iovec here = { area + (pages - 20 * n) * PAGE, n * PAGE }, there = { area + (pages - 30 * n) * PAGE, n * PAGE };
	eq("process_vm_writev", process_vm_writev(getpid(), &here, 1, &there, 1, 0), n * PAGE);
	for (size_t i = 0; i < n; i++)
		check_page("copied", (unsigned char *)there.iov_base + i * PAGE, pages - 20 * n + i);
	close(fd);
}

// execs: programs are started while memory is still to come, by children and at
// last by a child that had some itself.
static void execs(char **argv)
{
	make(argv);
	for (int i = 0; i < 20; i++) {
		pid_t pid = must("fork", fork());
		if (pid == 0) {
			check_page("before exec", area + (i * 97 % pages) * PAGE, i * 97 % pages);
			execl("/bin/cprogs", "cprogs", "list", NULL);
			_exit(9);
		}
		reap(pid);
		pid = must("vfork", vfork());
		if (pid == 0) {
			execl("/bin/cprogs", "cprogs", "list", NULL);
			_exit(9);
		}
		reap(pid);
	}
	reader(NULL);
}

// ends: processes of the image end at once, and leave their memory behind.
static void ends(char **argv)
{
	pages = 32 * MIB / PAGE;
	struct meeting m;
	meeting_make(&m);
	for (int c = 0; c < 3; c++) {
		if (must("fork", fork()) > 0)
			continue;
		area = anon(pages);
		for (size_t i = 0; i < pages; i++)
			fill_page(area + i * PAGE, i + c * 1000000);
		meeting_arrive(&m);
		wait_go();
		for (size_t i = 0; i < (c == 0 ? 1 : pages); i++)
			check_page("child of the image", area + i * PAGE, i + c * 1000000);
		_exit(0);
	}
	meeting_wait(&m, 3);
	make(argv);
	for (int c = 0; c < 3; c++) {
		int status;
		must("wait", wait(&status));
		eq("status of a child", status, 0);
	}
	reader(NULL);
}

static void huge(char **argv)
{
	pages = 128 * MIB / PAGE;
	area = (unsigned char *)(((uintptr_t)anon(pages + 512) + 2 * MIB - 1) & ~(2 * MIB - 1));
	must("madvise", madvise(area, pages * PAGE, MADV_HUGEPAGE));
	for (size_t i = 0; i < pages; i++)
		fill_page(area + i * PAGE, i);
	(void)argv;
	ready();
	wait_go();
	must("madvise", madvise(area + 64 * MIB, 4 * MIB, MADV_DONTNEED));
	FAR(i, pages)
		if (i * PAGE >= 64 * MIB && i * PAGE < 68 * MIB)
			zero_page("dropped", area + i * PAGE);
		else
			check_page("huge", area + i * PAGE, i);
}

// storm: threads do all of it at once, each in its own part and by its own book.
#define PART (8 * MIB / PAGE)

struct part { unsigned char *p; uint64_t n[PART]; unsigned seed; };
static int storming = 8;

static void storm_check(struct part *s, const char *what)
{
	for (size_t i = 0; i < PART; i++)
		if (s->n[i])
			check_page(what, s->p + i * PAGE, s->n[i] - 1);
		else
			zero_page(what, s->p + i * PAGE);
}

static void *storm_thread(void *arg)
{
	struct part *s = arg;
	for (int round = 0; round < 120; round++) {
		size_t at = rand_r(&s->seed) % PART, n = 1 + rand_r(&s->seed) % 64;
		if (n > PART - at)
			n = PART - at;
		switch (rand_r(&s->seed) % 6) {
		case 0:
			must("madvise", madvise(s->p + at * PAGE, n * PAGE, MADV_DONTNEED));
			memset(s->n + at, 0, n * sizeof *s->n);
			break;
		case 1: {
			unsigned char *to = mremap(s->p, PART * PAGE, PART * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, anon(PART));
			if (to == MAP_FAILED)
				fail("storm: mremap: %s", strerror(errno));
			s->p = to;
			break;
		}
		case 2:
			if (round % 6 == 0) {
				pid_t pid = must("fork", fork());
				if (pid == 0) {
					storm_check(s, "storm, child");
					_exit(0);
				}
				reap(pid);
			}
			break;
		case 3:
			for (size_t i = at; i < at + n; i++) {
				fill_page(s->p + i * PAGE, i + 5000000);
				s->n[i] = i + 5000000 + 1;
			}
			break;
		default:
			for (size_t i = at; i < at + n; i++)
				if (s->n[i])
					check_page("storm", s->p + i * PAGE, s->n[i] - 1);
				else
					zero_page("storm", s->p + i * PAGE);
		}
	}
	storm_check(s, "storm, at the end");
	return NULL;
}

static void storm(char **argv)
{
	static struct part s[8];
	for (int t = 0; t < storming; t++) {
		s[t].seed = t + 1;
		s[t].p = anon(PART);
		for (size_t i = 0; i < PART; i++) {
			uint64_t n = t * PART + i;
			fill_page(s[t].p + i * PAGE, n);
			s[t].n[i] = n + 1;
		}
	}
	make(argv);
	pthread_t id[8];
	for (int t = 0; t < storming; t++)
		eq("pthread_create", pthread_create(&id[t], NULL, storm_thread, &s[t]), 0);
	for (int t = 0; t < storming; t++)
		pthread_join(id[t], NULL);
	reader(NULL);
}

const struct prog lazy_progs[] = {
	{ "lazy-touch", touch }, { "lazy-delays", delays }, { "lazy-fork", forks }, { "lazy-move", moves },
	{ "lazy-drop", drops }, { "lazy-hole", holes }, { "lazy-lock", locks }, { "lazy-call", calls },
	{ "lazy-exec", execs }, { "lazy-end", ends }, { "lazy-huge", huge }, { "lazy-storm", storm }, { NULL, NULL },
};
