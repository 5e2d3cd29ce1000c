// Signals: handlers, masks, what is pending, the alternate stack, timers.
#include "prog.h"
#include <pthread.h>
#include <sys/time.h>

struct ksigaction { void *handler; unsigned long flags; void *restorer; uint64_t mask; };

static void raw_action(int sig, const struct ksigaction *set, struct ksigaction *get)
{
	must("rt_sigaction", syscall(SYS_rt_sigaction, sig, set, get, 8));
}

static volatile sig_atomic_t handled;

static void on_info(int sig, siginfo_t *si, void *uc)
{
	(void)uc;
	handled += sig == si->si_signo;
}

static void on_plain(int sig)
{
	handled += 100 * (sig > 0);
}

static void install(void)
{
	const struct { int sig, flags; } how[] = {
		{ SIGHUP, SA_SIGINFO }, { SIGUSR1, SA_SIGINFO | SA_RESTART | SA_ONSTACK },
		{ SIGUSR2, SA_SIGINFO | SA_NODEFER }, { SIGALRM, SA_SIGINFO | SA_RESETHAND },
		{ SIGRTMAX, SA_SIGINFO }, { SIGCHLD, SA_SIGINFO | SA_NOCLDSTOP | SA_NOCLDWAIT },
	};
	struct sigaction sa = { .sa_sigaction = on_info };
	for (size_t i = 0; i < sizeof how / sizeof *how; i++) {
		sa.sa_flags = how[i].flags;
		sigemptyset(&sa.sa_mask);
		sigaddset(&sa.sa_mask, SIGTERM + i % 2);
		sigaddset(&sa.sa_mask, SIGRTMIN + i);
		must("sigaction", sigaction(how[i].sig, &sa, NULL));
	}
	sa = (struct sigaction){ .sa_handler = on_plain };
	must("sigaction", sigaction(SIGWINCH, &sa, NULL));
	must("sigaction", sigaction(SIGURG, &sa, NULL));
	signal(SIGPIPE, SIG_IGN);
	signal(SIGRTMIN + 3, SIG_IGN);
}

static void handlers(char **argv)
{
	(void)argv;
	static struct ksigaction was[65], is;
	static char stack[65536];
	stack_t ss = { .ss_sp = stack, .ss_size = sizeof stack }, got;
	uint64_t mask_was, mask_is;
	allow_eintr = true;
	install();
	must("sigaltstack", sigaltstack(&ss, NULL));
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGQUIT);
	sigaddset(&set, SIGRTMIN + 9);
	sigprocmask(SIG_BLOCK, &set, NULL);
	for (int i = 1; i < 65; i++)
		raw_action(i, NULL, &was[i]);
	must("mask", syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &mask_was, 8));
	ready();
	wait_go();
	must("mask", syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &mask_is, 8));
	eq("mask", mask_is, mask_was);
	for (int i = 1; i < 65; i++) {
		raw_action(i, NULL, &is);
		eq("number of a signal whose action differs", memcmp(&is, &was[i], sizeof is) ? i : 0, 0);
	}
	must("sigaltstack", sigaltstack(NULL, &got));
	eq("alternate stack", (long)got.ss_sp, (long)stack);
	eq("its size", got.ss_size, sizeof stack);
	eq("its flags", got.ss_flags, 0);
	eq("handlers that ran unasked", handled, 0);
	raise(SIGUSR1);
	raise(SIGRTMAX);
	raise(SIGWINCH);
	raise(SIGPIPE);
	eq("handlers that ran", handled, 102);
}

static void queue(int sig, int value)
{
	must("sigqueue", sigqueue(getpid(), sig, (union sigval){ .sival_int = value }));
}

static void queue_thread(pid_t tid, int sig, int value)
{
	siginfo_t si = { .si_signo = sig, .si_code = SI_QUEUE };
	si.si_pid = getpid();
	si.si_uid = getuid();
	si.si_value.sival_int = value;
	must("rt_tgsigqueueinfo", syscall(SYS_rt_tgsigqueueinfo, getpid(), tid, sig, &si));
}

// take makes the raw call: glibc's shows SI_TKILL as SI_USER.
static void take(const char *who, int sig, int code, int value)
{
	siginfo_t si;
	sigset_t set;
	struct timespec none = { 0 };
	sigemptyset(&set);
	sigaddset(&set, sig);
	eq(who, syscall(SYS_rt_sigtimedwait, &set, &si, &none, 8), sig);
	eq("si_signo", si.si_signo, sig);
	eq("si_code", si.si_code, code);
	eq("si_pid", si.si_pid, getpid());
	eq("si_uid", si.si_uid, getuid());
	if (code == SI_QUEUE)
		eq("si_value", si.si_value.sival_int, value);
}

static void nothing(int sig)
{
	sigset_t set;
	struct timespec none = { 0 };
	sigemptyset(&set);
	sigaddset(&set, sig);
	eq("signal that should not be there", sigtimedwait(&set, NULL, &none), -1);
}

static volatile pid_t pending_tid;
static volatile int pending_go;

static void *pending_thread(void *arg)
{
	pending_tid = syscall(SYS_gettid);
	while (!pending_go)
		usleep(1000);
	for (int i = 0; i < 3; i++)
		take("queued for a thread", SIGRTMIN + 1, SI_QUEUE, 500 + i);
	take("sent to a thread", SIGUSR2, SI_TKILL, 0);
	return arg;
}

static void pending(char **argv)
{
	(void)argv;
	pthread_t t;
	sigset_t all;
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	pthread_create(&t, NULL, pending_thread, NULL);
	while (!pending_tid)
		usleep(1000);
	for (int i = 0; i < 20; i++)
		queue(SIGRTMIN + 2, 1000 + i);
	queue(SIGRTMIN + 5, 77);
	must("kill", kill(getpid(), SIGUSR1));
	must("kill", kill(getpid(), SIGTERM));
	for (int i = 0; i < 3; i++)
		queue_thread(pending_tid, SIGRTMIN + 1, 500 + i);
	must("tgkill", syscall(SYS_tgkill, getpid(), pending_tid, SIGUSR2));
	queue_thread(getpid(), SIGRTMIN + 4, 9);
	ready();
	wait_go();
	for (int i = 0; i < 20; i++)
		take("queued", SIGRTMIN + 2, SI_QUEUE, 1000 + i);
	take("queued", SIGRTMIN + 5, SI_QUEUE, 77);
	take("sent", SIGUSR1, SI_USER, 0);
	take("sent", SIGTERM, SI_USER, 0);
	take("queued for the leader", SIGRTMIN + 4, SI_QUEUE, 9);
	nothing(SIGRTMIN + 2);
	nothing(SIGRTMIN + 1);
	nothing(SIGUSR2);
	pending_go = 1;
	pthread_join(t, NULL);
}

// interrupted is a signal that finds the task inside a handler, on the alternate
// stack, with a mask that sigreturn must put back.
static volatile int inside;

static void slow(int sig)
{
	inside = 1;
	wait_go();
	uint64_t mask;
	must("mask", syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &mask, 8));
	eq("mask in the handler", mask >> (sig - 1) & 1, 1);
	inside = 2;
}

static void *tell(void *arg)
{
	while (!inside)
		usleep(1000);
	ready();
	return arg;
}

static void inhandler(char **argv)
{
	(void)argv;
	static char stack[65536];
	stack_t ss = { .ss_sp = stack, .ss_size = sizeof stack }, got;
	struct sigaction sa = { .sa_handler = slow, .sa_flags = SA_ONSTACK };
	pthread_t t;
	uint64_t mask = 0;
	must("sigaltstack", sigaltstack(&ss, NULL));
	must("sigaction", sigaction(SIGUSR1, &sa, NULL));
	pthread_create(&t, NULL, tell, NULL);
	raise(SIGUSR1);
	eq("steps of the handler", inside, 2);
	must("mask", syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &mask, 8));
	eq("mask after the handler", mask, 0);
	must("sigaltstack", sigaltstack(NULL, &got));
	eq("flags of the alternate stack", got.ss_flags, 0);
	pthread_join(t, NULL);
}

static volatile int alarms;

static void on_alarm(int sig)
{
	alarms += sig > 0;
}

static void near(const char *what, int64_t got, int64_t most, int64_t least)
{
	if (got > most || got < least)
		fail("%s: %ld us, want %ld to %ld", what, got, least, most);
}

static int64_t us(struct timeval tv)
{
	return tv.tv_sec * 1000000LL + tv.tv_usec;
}

static void itimers(char **argv)
{
	(void)argv;
	static const struct itimerval set[] = {
		{ { 0, 50000 }, { 0, 50000 } }, { { 70, 1 }, { 1000, 0 } }, { { 80, 2 }, { 2000, 0 } },
	};
	struct itimerval v;
	allow_eintr = true;
	signal(SIGALRM, on_alarm);
	for (int i = 0; i < 3; i++)
		must("setitimer", setitimer(i, &set[i], NULL));
	while (alarms < 2)
		usleep(1000);
	ready();
	wait_go();
	int was = alarms;
	int64_t t = now();
	while (alarms < was + 3)
		usleep(1000);
	near("three alarms", (now() - t) / 1000, 1000000, 99000);
	for (int i = 1; i < 3; i++) {
		must("getitimer", getitimer(i, &v));
		near("interval", us(v.it_interval), us(set[i].it_interval) + 5000, us(set[i].it_interval) - 5000);
		near("value", us(v.it_value), us(set[i].it_value) + 50000, us(set[i].it_value) - 20000000);
	}
}

/* A periodic timer that has run out, and whose signal waits, has nothing left. */
static void itimerdue(char **argv)
{
	(void)argv;
	static const struct itimerval set = { { 0, 50000 }, { 0, 10000 } };
	struct itimerval v;
	sigset_t alarm, pending;
	allow_eintr = true;
	signal(SIGALRM, on_alarm);
	sigemptyset(&alarm);
	sigaddset(&alarm, SIGALRM);
	must("sigprocmask", sigprocmask(SIG_BLOCK, &alarm, NULL));
	must("setitimer", setitimer(ITIMER_REAL, &set, NULL));
	do {
		usleep(1000);
		must("sigpending", sigpending(&pending));
	} while (!sigismember(&pending, SIGALRM));
	must("getitimer", getitimer(ITIMER_REAL, &v));
	eq("value", us(v.it_value), 0);
	ready();
	wait_go();
	eq("alarms while blocked", alarms, 0);
	must("sigprocmask", sigprocmask(SIG_UNBLOCK, &alarm, NULL));
	eq("alarms that waited", alarms, 1);
	int64_t t = now();
	while (alarms < 4)
		usleep(1000);
	near("three alarms", (now() - t) / 1000, 1000000, 99000);
}

struct ptimer { clockid_t clock; int notify, sig; int64_t value_ms, interval_ms; timer_t id; };

static struct ptimer ptimers[] = {
	{ CLOCK_MONOTONIC, SIGEV_SIGNAL, 0, 1000000, 30000, 0 }, { CLOCK_REALTIME, SIGEV_NONE, 0, 500000, 0, 0 },
	{ CLOCK_BOOTTIME, SIGEV_THREAD_ID, 1, 300, 0, 0 }, { CLOCK_MONOTONIC, SIGEV_SIGNAL, 2, 0, 0, 0 },
	{ CLOCK_MONOTONIC, SIGEV_SIGNAL, 3, 20, 20, 0 }, { CLOCK_REALTIME, SIGEV_SIGNAL, 4, 1, 0, 0 },
};

static void ptimers_make(void)
{
	timer_t gap;
	for (size_t i = 0; i < sizeof ptimers / sizeof *ptimers; i++) {
		struct ptimer *p = &ptimers[i];
		struct sigevent ev = { .sigev_notify = p->notify, .sigev_signo = SIGRTMIN + p->sig };
		ev.sigev_value.sival_int = 4000 + i;
		ev._sigev_un._tid = getpid();
		must("timer_create", timer_create(p->clock, &ev, &p->id));
		if (i == 1) { // ids have gaps
			must("timer_create", timer_create(p->clock, &ev, &gap));
			must("timer_delete", timer_delete(gap));
		}
		struct itimerspec t = {
			{ p->interval_ms / 1000, p->interval_ms % 1000 * 1000000 },
			{ p->value_ms / 1000, p->value_ms % 1000 * 1000000 },
		};
		must("timer_settime", timer_settime(p->id, 0, &t, NULL));
	}
}

static void fired(int i)
{
	sigset_t set;
	siginfo_t si;
	struct timespec most = { 20, 0 };
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + ptimers[i].sig);
	eq("signal of a timer", sigtimedwait(&set, &si, &most), SIGRTMIN + ptimers[i].sig);
	eq("si_code", si.si_code, SI_TIMER);
	eq("si_value", si.si_value.sival_int, 4000 + i);
}

static void posixtimers(char **argv)
{
	(void)argv;
	sigset_t all;
	struct itimerspec t;
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	ptimers_make();
	usleep(20000);
	ready();
	wait_go();
	for (size_t i = 0; i < sizeof ptimers / sizeof *ptimers; i++) {
		struct ptimer *p = &ptimers[i];
		must("timer_gettime", timer_gettime(p->id, &t));
		near("interval", t.it_interval.tv_sec * 1000000 + t.it_interval.tv_nsec / 1000,
			p->interval_ms * 1000, p->interval_ms * 1000);
		near("value", t.it_value.tv_sec * 1000000 + t.it_value.tv_nsec / 1000, p->value_ms * 1000,
			p->value_ms < 10000 ? 0 : p->value_ms * 1000 - 60000000);
	}
	fired(5);
	fired(4);
	fired(2);
	fired(4);
	for (size_t i = 0; i < sizeof ptimers / sizeof *ptimers; i++)
		must("timer_delete", timer_delete(ptimers[i].id));
}

const struct prog signal_progs[] = {
	{ "handlers", handlers }, { "pending", pending }, { "inhandler", inhandler }, { "itimers", itimers },
	{ "itimerdue", itimerdue }, { "posixtimers", posixtimers }, { NULL, NULL },
};
