// Containers of a certain size for the bench: they hold memory, write to it, and
// note how time went by, for the bench to read from /ctl/samples.
#include "prog.h"
#include <pthread.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

#define PAGE 4096UL
#define WORDS (PAGE / 8)
#define RING (1L << 18)

// A sample says how much work was done at a point of time, and how long the
// longest wait since the sample before was. n is how many there have been. The
// clock is the one that all see alike: a restore by CRIU makes a time namespace.
struct sample { int64_t at, count, longest; };
struct samples { int64_t n, unused[2]; struct sample ring[RING]; };

static struct samples *samples;

// The tally is shared by all processes of a load.
static struct tally { int64_t work, changed, present; } *tally;

static void *map(size_t n, int flags, int fd)
{
	void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, flags, fd, 0);
	if (p == MAP_FAILED)
		fail("mmap %zu bytes: %s", n, strerror(errno));
	return p;
}

static void samples_make(void)
{
	int fd = must("samples", open("/ctl/samples", O_RDWR | O_CREAT, 0666));
	must("ftruncate", ftruncate(fd, sizeof *samples));
	samples = map(sizeof *samples, MAP_SHARED, fd);
	close(fd);
	tally = map(PAGE, MAP_SHARED | MAP_ANONYMOUS, -1);
}

static void note(int64_t count, int64_t longest)
{
	struct timespec ts;
	clock_gettime(CLOCK_REALTIME, &ts);
	samples->ring[samples->n % RING] = (struct sample){ ts.tv_sec * 1000000000LL + ts.tv_nsec, count, longest };
	__atomic_store_n(&samples->n, samples->n + 1, __ATOMIC_SEQ_CST);
}

static int64_t get(const int64_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }

static bool is_there(const char *path) { return access(path, F_OK) == 0; }

// clockwork is a thread that does nothing but look at the clock.
static void *clockwork(void *arg)
{
	struct timespec nap = { .tv_nsec = 100000 };
	for (int64_t was = now(), is; ; was = is) {
		nanosleep(&nap, NULL);
		is = now();
		note(get(&tally->work), is - was);
	}
	return arg;
}

struct load {
	long mib, threads, procs, rate, busy, thp;
	uint64_t *mem, sum;
	size_t pages;
};

// sum leaves out the first word of each page, which is what writers write.
static uint64_t sum(const struct load *l)
{
	uint64_t s = 0;
	for (size_t i = 0; i < l->pages * WORDS; i++)
		if (i % WORDS)
			s = (s ^ l->mem[i]) * 0x9e3779b97f4a7c15u;
	return s;
}

static void load_fill(struct load *l, size_t pages)
{
	uint64_t seed = 88172645463325252u + getpid();
	l->pages = pages;
	if (!l->pages)
		return;
	l->mem = map(l->pages * PAGE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	if (l->thp)
		must("madvise", madvise(l->mem, l->pages * PAGE, MADV_HUGEPAGE));
	for (size_t i = 0; i < l->pages * WORDS; i++) {
		seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
		l->mem[i] = seed;
	}
	l->sum = sum(l);
}

// touch writes to so many pages a second, one after the other over all memory.
static void *touch(void *arg)
{
	const struct load *l = arg;
	long batch = l->rate < 1000 ? 1 : l->rate / 1000;
	long ns = 1000000000 / l->rate * batch;
	struct timespec nap = { .tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000 };
	for (size_t p = 0; ; nanosleep(&nap, NULL))
		for (long i = 0; i < batch; i++) {
			p = (p + 7919) % l->pages;
			l->mem[p * WORDS]++;
			__atomic_add_fetch(&tally->work, 1, __ATOMIC_RELAXED);
		}
	return NULL;
}

// work computes without a pause, and writes to a twentieth of its memory. It looks
// at the clock itself: a thread that wakes up for it every 0.1 ms takes a quarter of
// the time of one that works on the same CPU.
static void *work(void *arg)
{
	const struct load *l = arg;
	uint64_t rnd = 88172645463325252u;
	int64_t was = now(), noted = was, longest = 0, is;
	for (size_t hot = l->pages / 20 + 1; ; was = is) {
		rnd ^= rnd << 13, rnd ^= rnd >> 7, rnd ^= rnd << 17;
		uint64_t *page = l->mem + (rnd >> 8) % hot * WORDS, x = 0;
		for (size_t i = 1; i < WORDS; i++)
			x = (x ^ page[i]) * 0x9e3779b97f4a7c15u;
		*page = x;
		__atomic_add_fetch(&tally->work, 1, __ATOMIC_RELAXED);
		is = now();
		longest = is - was > longest ? is - was : longest;
		if (is - noted > 1000000) {
			note(get(&tally->work), longest);
			longest = 0, noted = is;
		}
	}
	return NULL;
}

static void *park(void *arg)
{
	__atomic_add_fetch(&tally->present, 1, __ATOMIC_SEQ_CST);
	for (;;)
		pause();
	return arg;
}

static void start(void *(*run)(void *), void *arg)
{
	pthread_t t;
	pthread_attr_t a;
	pthread_attr_init(&a);
	pthread_attr_setstacksize(&a, 65536);
	eq("pthread_create", pthread_create(&t, &a, run, arg), 0);
}

static void load_start(struct load *l, bool first)
{
	if (l->rate && l->pages)
		start(touch, l);
	if (l->busy && l->pages && first)
		start(work, l);
}

// obey waits for go. When asked for a change, it writes to every hundredth page.
static void obey(struct load *l)
{
	struct timespec nap = { .tv_nsec = 5000000 };
	for (bool changed = false; !is_there("/ctl/go"); nanosleep(&nap, NULL)) {
		if (changed || !is_there("/ctl/change"))
			continue;
		for (size_t p = 0; p < l->pages; p += 100)
			l->mem[p * WORDS]++;
		changed = true;
		__atomic_add_fetch(&tally->changed, 1, __ATOMIC_SEQ_CST);
	}
}

static void load_child(struct load *l, size_t pages)
{
	load_fill(l, pages);
	load_start(l, false);
	__atomic_add_fetch(&tally->present, 1, __ATOMIC_SEQ_CST);
	obey(l);
	eq("checksum", sum(l), l->sum);
	_exit(0);
}

static void *tell_changed(void *arg)
{
	const struct load *l = arg;
	while (get(&tally->changed) < l->procs)
		usleep(5000);
	close(must("changed", open("/ctl/changed", O_CREAT | O_WRONLY, 0666)));
	return NULL;
}

static void everybody(long n)
{
	while (get(&tally->present) < n)
		usleep(1000);
}

// load has so much memory, threads and processes in all. Each process writes to
// rate/procs of its pages a second; with busy, the first does nothing but work.
static void load(char **argv)
{
	static struct load l = { .threads = 1, .procs = 1 };
	static pid_t pids[1000];
	const struct setting known[] = {
		{ "mib", &l.mib, NULL }, { "threads", &l.threads, NULL }, { "procs", &l.procs, NULL },
		{ "rate", &l.rate, NULL }, { "busy", &l.busy, NULL }, { "thp", &l.thp, NULL }, { NULL, NULL, NULL },
	};
	settle(argv + 2, known);
	if (l.procs < 1 || l.procs > 1000)
		fail("%ld processes: out of range", l.procs);
	samples_make();
	size_t pages = (l.mib << 8) / l.procs;
	l.rate = l.rate ? 1 + (l.rate - 1) / l.procs : 0;
	for (long i = 1; i < l.procs; i++)
		if ((pids[i] = must("fork", fork())) == 0)
			load_child(&l, pages);
	load_fill(&l, pages);
	for (long i = 1; i < l.threads; i++)
		start(park, NULL);
	everybody(l.procs - 1 + l.threads - 1);
	load_start(&l, true);
	if (!l.busy)
		start(clockwork, NULL);
	start(tell_changed, &l);
	ready();
	obey(&l);
	eq("checksum", sum(&l), l.sum);
	for (long i = 1; i < l.procs; i++)
		reap(pids[i]);
}

// A talk is one connection to a redis, which speaks RESP.
static int talk_open(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = must("socket", socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
	snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
	for (int64_t end = now() + 20000000000; connect(fd, (void *)&a, sizeof a) != 0; usleep(1000))
		if (now() > end)
			fail("connect to %s: %s", path, strerror(errno));
	return fd;
}

static void talk_send(int fd, const char *b, size_t n)
{
	for (size_t done = 0; done < n;)
		done += must("write to redis", write(fd, b + done, n - done));
}

static void talk_hear(int fd, const char *want, size_t times)
{
	char is[64];
	size_t n = strlen(want);
	for (; times > 0; times--) {
		for (size_t done = 0; done < n;)
			done += must("read from redis", read(fd, is + done, n - done));
		if (memcmp(is, want, n) != 0)
			fail("redis says %.20s, want %s", is, want);
	}
}

// record writes the value of a key: text as programs keep it.
static size_t record(char *to, size_t size, uint64_t rnd, long id)
{
	static const char *const words[] = {
		"amber", "bridge", "copper", "delta", "ember", "forest", "garden", "harbor", "island", "juniper", "kernel",
		"lantern", "meadow", "north", "orchard", "prairie", "quartz", "river", "summit", "timber", "union", "valley",
		"willow", "yonder", "zephyr", "anchor", "beacon", "canyon", "dune", "echo", "fjord", "glacier",
	};
	size_t n = snprintf(to, size, "{\"id\":%ld,\"mail\":\"%s.%s%lu@example.com\",\"city\":\"%s\",\"visits\":%lu,"
		"\"seen\":\"2026-%02lu-%02luT%02lu:%02lu:%02luZ\",\"note\":\"", id, words[rnd % 32], words[rnd >> 5 & 31],
		rnd >> 10 & 4095, words[rnd >> 22 & 31], rnd >> 27 & 65535, 1 + (rnd >> 43) % 12, 1 + (rnd >> 44) % 28,
		(rnd >> 45) % 24, (rnd >> 46) % 60, (rnd >> 47) % 60);
	for (int i = 0; i < 96 && n + 20 < size; i++) {
		rnd ^= rnd << 13, rnd ^= rnd >> 7, rnd ^= rnd << 17;
		n += snprintf(to + n, size - n, "%s ", words[rnd >> 20 & 31]);
	}
	return n + snprintf(to + n, size - n, "\"}");
}

enum { VALUE = 850, BATCH = 500 };

// redis_fill sets keys until the values are so many MiB together, and returns
// how many keys that are.
static long redis_fill(int fd, long mib)
{
	static char out[BATCH * (VALUE + 100)], value[VALUE];
	uint64_t rnd = 88172645463325252u;
	long keys = 0;
	for (size_t all = 0; all < (size_t)mib << 20;) {
		size_t n = 0;
		for (int i = 0; i < BATCH; i++, keys++) {
			rnd ^= rnd << 13, rnd ^= rnd >> 7, rnd ^= rnd << 17;
			size_t len = record(value, sizeof value, rnd, keys);
			n += snprintf(out + n, sizeof out - n, "*3\r\n$3\r\nSET\r\n$12\r\nuser:%07ld\r\n$%zu\r\n%s\r\n",
				keys % 10000000, len, value);
			all += len;
		}
		talk_send(fd, out, n);
		talk_hear(fd, "+OK\r\n", BATCH);
	}
	return keys;
}

// redis_client sets one key after the other and notes how long each took, from
// one answer to the next: what stands still between them keeps a client waiting, too.
static void redis_client(int fd, long keys)
{
	static char out[VALUE + 100], value[VALUE];
	uint64_t rnd = 1;
	int64_t longest = 0, noted = 0, count = 0, was = now();
	while (!is_there("/ctl/go")) {
		rnd = rnd * 6364136223846793005u + 1442695040888963407u;
		size_t len = record(value, sizeof value, rnd, count);
		size_t n = snprintf(out, sizeof out, "*3\r\n$3\r\nSET\r\n$12\r\nuser:%07lu\r\n$%zu\r\n%s\r\n",
			(rnd >> 33) % (unsigned long)keys % 10000000, len, value);
		talk_send(fd, out, n);
		talk_hear(fd, "+OK\r\n", 1);
		int64_t is = now();
		count++;
		longest = is - was > longest ? is - was : longest;
		was = is;
		if (is - noted > 100000) {
			note(count, longest);
			longest = 0, noted = is;
		}
	}
}

// redis MIB PROCESSES is a redis that holds so much text, and a client of it.
static void redis(char **argv)
{
	static char *const server[] = {
		"redis-server", "--port", "0", "--save", "", "--appendonly", "no", "--unixsocket", "/tmp/s", "--logfile",
		"/dev/null", "--dir", "/tmp", NULL,
	};
	samples_make();
	pid_t pid = must("fork", fork());
	if (pid == 0) {
		execv("/usr/bin/redis-server", server);
		fail("exec redis-server: %s", strerror(errno));
	}
	for (long i = 2; i < atol(argv[3]); i++)
		if (must("fork", fork()) == 0)
			park(NULL);
	everybody(atol(argv[3]) - 2);
	int fd = talk_open("/tmp/s");
	long keys = redis_fill(fd, atol(argv[2]));
	ready();
	redis_client(fd, keys);
	talk_send(fd, "*1\r\n$4\r\nPING\r\n", 14);
	talk_hear(fd, "+PONG\r\n", 1);
}

// warm has the host back so many MiB, which it then gives back to the kernel.
static void warm(char **argv)
{
	size_t n = strtoul(argv[2], NULL, 10) << 20;
	map(n, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1);
	_exit(0);
}

// peak FILE COMMAND [ARGS] runs a command on the host and notes in a file how many
// KiB it, or one of the commands that it ran, had at most. It is small, for the
// kernel counts what a process had before it executes a program (fs/exec.c,
// exec_mmap).
static void peak(char **argv)
{
	struct rusage used;
	int status;
	pid_t parent = getpid(), pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() == parent)
			execvp(argv[3], argv + 3);
		_exit(127);
	}
	FILE *f = fopen(argv[2], "w");
	if (pid < 0 || !f || wait4(pid, &status, 0, &used) != pid || fprintf(f, "%ld\n", used.ru_maxrss) < 0 || fclose(f) != 0)
		_exit(126);
	_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

const struct prog load_progs[] = {
	{ "load", load }, { "redis", redis }, { "warm", warm }, { "peak", peak }, { NULL, NULL },
};
