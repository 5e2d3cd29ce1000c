// Calls that a checkpoint interrupts must go on as if nothing had happened: each
// thread sits in one, records what it answered, and how long it took.
#include "prog.h"
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/un.h>

#define WAIT_NS 1500000000LL
#define ENOUGH (24UL << 20) // bytes of memory that an engine may find worth following: that stops us, too

static struct {
	int fut[2], pipe[2], full[2], ep, ep_timed, listen, pair[2];
	pid_t child;
	struct sockaddr_un name;
} o;

struct blocked {
	const char *name;
	long (*call)(void);
	long want;
	int want_errno;
	bool timed;
	long ret;
	int err;
	int64_t took;
	pthread_t thread;
};

static struct timespec span(void)
{
	return (struct timespec){ WAIT_NS / 1000000000, WAIT_NS % 1000000000 };
}

static long c_nanosleep(void)
{
	struct timespec ts = span(), rem;
	return nanosleep(&ts, &rem);
}

static long c_nanosleep_null(void)
{
	struct timespec ts = span();
	return syscall(SYS_nanosleep, &ts, NULL);
}

static long c_clock_nanosleep(void)
{
	int64_t at = now() + WAIT_NS;
	struct timespec ts = { at / 1000000000, at % 1000000000 };
	return syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL);
}

static long c_clock_nanosleep_rel(void)
{
	struct timespec ts = span(), rem;
	return syscall(SYS_clock_nanosleep, CLOCK_BOOTTIME, 0, &ts, &rem);
}

// A call that begins again behind the wake finds the word changed.
static long c_futex(void)
{
	long ret = syscall(SYS_futex, &o.fut[0], FUTEX_WAIT_PRIVATE, 0, NULL);
	return ret < 0 && errno == EAGAIN && o.fut[0] == 1 ? 0 : ret;
}

static long c_futex_timed(void)
{
	struct timespec ts = span();
	return syscall(SYS_futex, &o.fut[1], FUTEX_WAIT_PRIVATE, 0, &ts);
}

static long c_futex_bitset(void)
{
	int64_t at = now() + WAIT_NS;
	struct timespec ts = { at / 1000000000, at % 1000000000 };
	return syscall(SYS_futex, &o.fut[1], FUTEX_WAIT_BITSET_PRIVATE, 0, &ts, NULL, ~0);
}

static long c_poll(void)
{
	struct pollfd p = { o.pipe[0], POLLIN, 0 };
	return poll(&p, 1, -1);
}

static long c_poll_timed(void)
{
	struct pollfd p = { o.pair[0], POLLIN, 0 };
	return syscall(SYS_poll, &p, 1, WAIT_NS / 1000000);
}

static long c_ppoll_timed(void)
{
	struct pollfd p = { o.pair[0], POLLIN, 0 };
	struct timespec ts = span();
	sigset_t none;
	sigemptyset(&none);
	return ppoll(&p, 1, &ts, &none);
}

static long c_select_timed(void)
{
	fd_set set;
	struct timeval tv = { WAIT_NS / 1000000000, WAIT_NS % 1000000000 / 1000 };
	FD_ZERO(&set);
	FD_SET(o.pair[0], &set);
	return select(o.pair[0] + 1, &set, NULL, NULL, &tv);
}

static long c_epoll(void)
{
	struct epoll_event ev;
	return epoll_wait(o.ep, &ev, 1, -1);
}

static long c_epoll_timed(void)
{
	struct epoll_event ev;
	return epoll_wait(o.ep_timed, &ev, 1, WAIT_NS / 1000000);
}

static long c_read(void)
{
	char c;
	return read(o.pair[1], &c, 1);
}

static long c_write(void)
{
	static char page[4096];
	return write(o.full[1], page, sizeof page);
}

static long c_accept(void) { return accept(o.listen, NULL, NULL) >= 0 ? 0 : -1; }

static long c_waitid(void)
{
	siginfo_t si;
	return waitid(P_PID, o.child, &si, WEXITED);
}

static long c_open(void)
{
	int fd = open("/ctl/fifo", O_RDONLY);
	return fd < 0 ? fd : close(fd);
}

static long c_sigtimedwait(void)
{
	sigset_t set;
	struct timespec ts = span();
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	return sigtimedwait(&set, NULL, &ts);
}

static long c_recv_timed(void)
{
	char c;
	struct timeval tv = { WAIT_NS / 1000000000, WAIT_NS % 1000000000 / 1000 };
	must("timeout", setsockopt(o.pair[0], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv));
	return recv(o.pair[0], &c, 1, 0);
}

static void *block(void *arg)
{
	struct blocked *b = arg;
	int64_t t = now();
	b->ret = b->call();
	b->err = b->ret == -1 ? errno : 0;
	b->took = now() - t;
	return NULL;
}

static void make_objects(void)
{
	static char page[4096];
	struct epoll_event ev = { .events = EPOLLIN };
	must("pipe", pipe(o.pipe));
	must("pipe", pipe2(o.full, O_NONBLOCK));
	while (write(o.full[1], page, sizeof page) > 0)
		;
	must("fcntl", fcntl(o.full[1], F_SETFL, 0));
	must("socketpair", socketpair(AF_UNIX, SOCK_STREAM, 0, o.pair));
	must("epoll", o.ep = epoll_create1(0));
	must("epoll", o.ep_timed = epoll_create1(0));
	must("epoll_ctl", epoll_ctl(o.ep, EPOLL_CTL_ADD, o.pipe[0], &ev));
	must("epoll_ctl", epoll_ctl(o.ep_timed, EPOLL_CTL_ADD, o.pair[0], &ev));
	must("socket", o.listen = socket(AF_UNIX, SOCK_STREAM, 0));
	o.name.sun_family = AF_UNIX;
	strcpy(o.name.sun_path, "/ctl/listen");
	must("bind", bind(o.listen, (void *)&o.name, sizeof o.name));
	must("listen", listen(o.listen, 5));
	must("mkfifo", mkfifo("/ctl/fifo", 0666));
	if ((o.child = must("fork", fork())) == 0) {
		wait_go();
		_exit(0);
	}
}

static void wake_pipe(void)
{
	must("write", write(o.pipe[1], "x", 1));
}

static void wake_none(void) {}

static void wake_all(void)
{
	static char page[4096];
	o.fut[0] = 1;
	syscall(SYS_futex, &o.fut[0], FUTEX_WAKE_PRIVATE, 10);
	wake_pipe();
	must("write", write(o.pair[0], "x", 1));
	must("read", read(o.full[0], page, sizeof page));
	int fd = must("socket", socket(AF_UNIX, SOCK_STREAM, 0));
	must("connect", connect(fd, (void *)&o.name, sizeof o.name));
	fd = must("fifo", open("/ctl/fifo", O_WRONLY));
	close(fd);
}

static void verify(struct blocked *b)
{
	char what[80];
	pthread_join(b->thread, NULL);
	snprintf(what, sizeof what, "errno of %s", b->name);
	eq(what, b->err, b->want_errno);
	snprintf(what, sizeof what, "answer of %s", b->name);
	eq(what, b->ret, b->want);
	if (b->timed && b->took < WAIT_NS - 2000000)
		fail("%s took %ld ns, want at least %lld", b->name, b->took, WAIT_NS);
}

static void run_all(struct blocked *b, void (*wake)(void))
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	char *memory = malloc(ENOUGH);
	memset(memory, 1, ENOUGH);
	make_objects();
	for (struct blocked *call = b; call->name; call++)
		eq("pthread_create", pthread_create(&call->thread, NULL, block, call), 0);
	usleep(50000);
	ready();
	wait_go();
	wake();
	for (; b->name; b++)
		verify(b);
	eq("what the memory holds", memory[ENOUGH - 1], 1);
}

static void restart(char **argv)
{
	(void)argv;
	static struct blocked calls[] = {
		{ .name = "nanosleep", .call = c_nanosleep, .timed = true },
		{ .name = "nanosleep without rem", .call = c_nanosleep_null, .timed = true },
		{ .name = "clock_nanosleep until", .call = c_clock_nanosleep, .timed = true },
		{ .name = "clock_nanosleep", .call = c_clock_nanosleep_rel, .timed = true },
		{ .name = "futex", .call = c_futex },
		{ .name = "futex with timeout", .call = c_futex_timed, .want = -1, .want_errno = ETIMEDOUT, .timed = true },
		{ .name = "futex until", .call = c_futex_bitset, .want = -1, .want_errno = ETIMEDOUT, .timed = true },
		{ .name = "poll", .call = c_poll, .want = 1 },
		{ .name = "poll with timeout", .call = c_poll_timed, .timed = true },
		{ .name = "ppoll with timeout", .call = c_ppoll_timed, .timed = true },
		{ .name = "select with timeout", .call = c_select_timed, .timed = true },
		{ .name = "read", .call = c_read, .want = 1 },
		{ .name = "write", .call = c_write, .want = 4096 },
		{ .name = "accept", .call = c_accept },
		{ .name = "waitid", .call = c_waitid },
		{ .name = "open of a fifo", .call = c_open },
		{ .name = NULL },
	};
	run_all(calls, wake_all);
}

// restart_eintr holds the calls that the kernel ends with EINTR for any signal
// or stop (signal(7)): only the engine can make them go on.
static void restart_eintr(char **argv)
{
	(void)argv;
	static struct blocked calls[] = {
		{ .name = "epoll_wait", .call = c_epoll, .want = 1 },
		{ .name = "epoll_wait with timeout", .call = c_epoll_timed, .timed = true },
		{ .name = NULL },
	};
	run_all(calls, wake_pipe);
}

static void restart_timeo(char **argv)
{
	(void)argv;
	static struct blocked calls[] = {
		{ .name = "sigtimedwait", .call = c_sigtimedwait, .want = -1, .want_errno = EAGAIN, .timed = true },
		{ .name = NULL },
	};
	run_all(calls, wake_none);
}

static void restart_recv(char **argv)
{
	(void)argv;
	static struct blocked calls[] = {
		{ .name = "recv with SO_RCVTIMEO", .call = c_recv_timed, .want = -1, .want_errno = EAGAIN, .timed = true },
		{ .name = NULL },
	};
	run_all(calls, wake_none);
}

const struct prog restart_progs[] = {
	{ "restart", restart }, { "restart-eintr", restart_eintr }, { "restart-timeo", restart_timeo },
	{ "restart-recv", restart_recv }, { NULL, NULL },
};
