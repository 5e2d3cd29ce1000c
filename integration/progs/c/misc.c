// What glibc asks the kernel to do for threads; descriptors across fork; many
// threads and processes.
#include "prog.h"
#include <linux/futex.h>
#include <linux/rseq.h>
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <sys/rseq.h>
#include <sys/socket.h>

struct head { void *list; size_t size; };

static void robust_look(struct head *h)
{
	must("get_robust_list", syscall(SYS_get_robust_list, 0, &h->list, &h->size));
}

struct lock { pthread_mutex_t mutex; int held; };

// robust: a lock whose owner dies after the restore must tell the next owner.
static void robust(char **argv)
{
	(void)argv;
	struct head was, is;
	pthread_mutexattr_t a;
	struct lock *l = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pthread_mutexattr_init(&a);
	pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST);
	pthread_mutexattr_setpshared(&a, PTHREAD_PROCESS_SHARED);
	pthread_mutex_init(&l->mutex, &a);
	pid_t pid = must("fork", fork());
	if (pid == 0) {
		pthread_mutex_lock(&l->mutex);
		l->held = 1;
		wait_go();
		_exit(0); // without unlocking
	}
	while (!*(volatile int *)&l->held)
		usleep(1000);
	robust_look(&was);
	ready();
	wait_go();
	robust_look(&is);
	eq("robust list", (long)is.list, (long)was.list);
	eq("size of its head", is.size, was.size);
	eq("lock of a dead owner", pthread_mutex_lock(&l->mutex), EOWNERDEAD);
	reap(pid);
}

static struct rseq *area(void)
{
	return (void *)((char *)__builtin_thread_pointer() + __rseq_offset);
}

// rseq_counted counts in a restartable sequence; -1 says it was aborted.
static int rseq_counted(volatile long *at, volatile int *spin)
{
	asm goto(
		".pushsection __rseq_cs, \"aw\"\n.balign 32\n"
		"3: .long 0, 0\n.quad 1f, (2f - 1f), 4f\n.popsection\n"
		"leaq 3b(%%rip), %%rax\nmovq %%rax, %[cs]\n"
		"1: cmpl $0, (%[spin]); jne 1b\n"
		"incq (%[at])\n2:\n"
		".pushsection __rseq_failure, \"ax\"\n.byte 0x0f, 0xb9, 0x3d\n.long %c[sig]\n"
		"4: jmp %l[aborted]\n.popsection\n"
		:: [cs] "m"(area()->rseq_cs), [at] "r"(at), [spin] "r"(spin), [sig] "i"(RSEQ_SIG)
		: "memory", "cc", "rax" : aborted);
	return 0;
aborted:
	return -1;
}

static volatile int rseq_inside, rseq_spin = 1;
static volatile long rseq_count, rseq_aborts;

// in_sequence stays inside a sequence over the checkpoint, which must abort it.
static void *in_sequence(void *arg)
{
	rseq_inside = syscall(SYS_gettid);
	while (rseq_counted(&rseq_count, &rseq_spin) < 0)
		rseq_aborts++;
	return arg;
}

static void rseq(char **argv)
{
	(void)argv;
	pthread_t t;
	if (__rseq_size == 0)
		fail("rseq: not registered by the C library, want it");
	pthread_create(&t, NULL, in_sequence, NULL);
	while (!rseq_inside)
		usleep(1000);
	ready();
	wait_go();
	eq("second registration", syscall(SYS_rseq, area(), 32, 0, RSEQ_SIG), -1);
	eq("its error", errno, EBUSY);
	cpu_set_t one;
	for (int cpu = 0; cpu < 2; cpu++) {
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		if (sched_setaffinity(0, sizeof one, &one) == 0)
			eq("cpu_id", *(volatile __u32 *)&area()->cpu_id, cpu);
	}
	long was = rseq_aborts;
	for (int64_t end = now() + 20000000000, cpu = 0; rseq_aborts == was; cpu = !cpu) {
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		sched_setaffinity(rseq_inside, sizeof one, &one); // the kernel aborts it when it moves
		if (usleep(1000), now() > end)
			fail("rseq: no abort in 20 s, want one at a move");
	}
	rseq_spin = 0;
	pthread_join(t, NULL);
	eq("counts", rseq_count, 1);
}

static int parked, unpark;

static void *park(void *arg)
{
	pid_t tid = syscall(SYS_gettid);
	char name[16];
	snprintf(name, sizeof name, "t%ld", (long)arg);
	prctl(PR_SET_NAME, name);
	sigset_t set, is;
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + (long)arg % 20);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	__atomic_add_fetch(&parked, 1, __ATOMIC_SEQ_CST);
	while (!__atomic_load_n(&unpark, __ATOMIC_SEQ_CST))
		syscall(SYS_futex, &unpark, FUTEX_WAIT, 0, NULL, NULL, 0);
	eq("tid", syscall(SYS_gettid), tid);
	char got[16];
	prctl(PR_GET_NAME, got);
	same("name of a thread", got, name);
	pthread_sigmask(SIG_BLOCK, NULL, &is);
	for (int i = 0; i < 20; i++)
		eq("blocked", sigismember(&is, SIGRTMIN + i), i == (long)arg % 20);
	return arg;
}

static void threads(char **argv)
{
	int n = argv[2] ? atoi(argv[2]) : 60;
	pthread_t t[1000];
	pthread_attr_t a;
	pthread_attr_init(&a);
	pthread_attr_setstacksize(&a, 65536);
	for (long i = 0; i < n; i++)
		eq("pthread_create", pthread_create(&t[i], &a, park, (void *)i), 0);
	while (__atomic_load_n(&parked, __ATOMIC_SEQ_CST) < n)
		usleep(1000);
	ready();
	wait_go();
	__atomic_store_n(&unpark, 1, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, &unpark, FUTEX_WAKE, 1000, NULL, NULL, 0);
	for (long i = 0; i < n; i++) {
		void *ret;
		eq("pthread_join", pthread_join(t[i], &ret), 0); // the kernel clears the tid
		eq("answer of a thread", (long)ret, i);
	}
}

static void *outlive(void *arg)
{
	while (syscall(SYS_getpid) && access("/ctl/ready", F_OK) != 0)
		usleep(1000);
	wait_go();
	_exit(arg == NULL);
}

// deadleader: the first thread of a process has ended, another goes on.
static void deadleader(char **argv)
{
	(void)argv;
	pid_t pid = must("fork", fork());
	if (pid == 0) {
		pthread_t t;
		pthread_create(&t, NULL, outlive, "");
		syscall(SYS_exit, 0);
	}
	char path[64], line[100] = "";
	snprintf(path, sizeof path, "/proc/%d/status", pid);
	while (!strstr(line, "Z (zombie)"))
		status_lines(path, "State", line, sizeof line);
	ready();
	wait_go();
	reap(pid);
}

static void crowd(char **argv)
{
	int n = argv[2] ? atoi(argv[2]) : 40;
	struct meeting m;
	meeting_make(&m);
	for (int i = 0; i < n; i++)
		if (must("fork", fork()) == 0) {
			pid_t pid = getpid();
			meeting_arrive(&m);
			wait_go();
			eq("pid", getpid(), pid);
			eq("ppid", getppid(), 1);
			_exit(0);
		}
	meeting_wait(&m, n);
	ready();
	wait_go();
	int status, left = n;
	for (; waitpid(-1, &status, 0) > 0; left--)
		eq("status of a child", status, 0);
	eq("children left", left, 0);
}

// gaps notes in a file the longest time between two turns of a loop: how long
// the process stood still, as it saw it. The test sets it back to zero.
static void *gaps(void *arg)
{
	volatile int64_t *longest = arg;
	struct timespec ts = { .tv_nsec = 100000 };
	for (int64_t was = now(), is; access("/ctl/go", F_OK) != 0; was = is) {
		nanosleep(&ts, NULL);
		is = now();
		if (is - was > *longest)
			*longest = is - was;
	}
	return NULL;
}

static uint64_t checksum(const uint64_t *p, size_t n)
{
	uint64_t sum = 0;
	for (size_t i = 0; i < n; i++)
		sum = (sum ^ p[i]) * 0x9e3779b97f4a7c15u;
	return sum;
}

// load MIB THREADS PROCESSES is a container of a certain size.
static void load(char **argv)
{
	size_t words = strtoul(argv[2], NULL, 10) << 17;
	int n_threads = atoi(argv[3]), n_procs = atoi(argv[4]);
	uint64_t *p = NULL, seed = 88172645463325252u;
	pthread_t t;
	int fd = must("gap", open("/ctl/gap", O_RDWR | O_CREAT, 0666));
	must("ftruncate", ftruncate(fd, 8));
	void *gap = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	for (int i = 1; i < n_procs; i++)
		if (must("fork", fork()) == 0)
			for (;;)
				pause();
	if (words) {
		p = mmap(NULL, words * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (argv[5]) // "huge"
			must("advice", madvise(p, words * 8, MADV_HUGEPAGE));
		for (size_t i = 0; i < words; i++) {
			seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
			p[i] = seed;
		}
	}
	uint64_t sum = checksum(p, words);
	pthread_create(&t, NULL, gaps, gap);
	for (long i = 1; i < n_threads; i++)
		eq("pthread_create", pthread_create(&t, NULL, park, (void *)i), 0);
	while (__atomic_load_n(&parked, __ATOMIC_SEQ_CST) < n_threads - 1)
		usleep(1000);
	ready();
	wait_go();
	eq("checksum", checksum(p, words), sum);
}

// forkfds: descriptions that parent and child share keep one offset, and what
// the child closed or opened by itself is its own.
static void forkfds_child(struct meeting *m, int file, int pair, int pipe_in)
{
	char c;
	close(pipe_in);
	must("lseek", lseek(file, 3, SEEK_SET));
	must("own", dup2(file, 77));
	fcntl(77, F_SETFD, FD_CLOEXEC);
	meeting_arrive(m);
	wait_go();
	eq("byte from the parent", read(pair, &c, 1), 1);
	eq("offset that the parent moved", lseek(file, 0, SEEK_CUR), 5);
	eq("offset of a duplicate", lseek(77, 0, SEEK_CUR), 5);
	eq("close-on-exec", fcntl(77, F_GETFD), FD_CLOEXEC);
	eq("descriptor that was closed", fcntl(pipe_in, F_GETFD), -1);
	must("lseek", lseek(77, 9, SEEK_SET));
	_exit(0);
}

static void forkfds(char **argv)
{
	(void)argv;
	struct meeting m;
	int pair[2], p[2];
	char buf[8] = "";
	meeting_make(&m);
	int file = must("open", open("/ctl/data", O_RDWR | O_CREAT, 0666));
	must("write", write(file, "0123456789", 10));
	must("socketpair", socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	must("pipe", pipe(p));
	must("write", write(p[1], "pipe", 4));
	pid_t pid = must("fork", fork());
	if (pid == 0) {
		close(pair[0]);
		forkfds_child(&m, file, pair[1], p[0]);
	}
	close(pair[1]);
	meeting_wait(&m, 1);
	ready();
	wait_go();
	eq("offset that the child moved", lseek(file, 0, SEEK_CUR), 3);
	must("lseek", lseek(file, 5, SEEK_SET));
	must("write", write(pair[0], "x", 1));
	reap(pid);
	eq("offset that the child moved later", lseek(file, 0, SEEK_CUR), 9);
	eq("descriptor of the child only", fcntl(77, F_GETFD), -1);
	eq("read", read(p[0], buf, 8), 4);
	same("pipe", buf, "pipe");
	eq("end of the pair", read(pair[0], buf, 1), 0);
}

const struct prog misc_progs[] = {
	{ "robust", robust }, { "rseq", rseq }, { "threads", threads }, { "deadleader", deadleader },
	{ "crowd", crowd }, { "load", load }, { "forkfds", forkfds }, { NULL, NULL },
};
