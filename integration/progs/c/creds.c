// Credentials, seccomp filters, limits, scheduling.
#include "prog.h"
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <sys/personality.h>
#include <sys/resource.h>

#define CRED_LINES "Uid Gid Groups CapInh CapPrm CapEff CapBnd CapAmb NoNewPrivs Seccomp Seccomp_filters"

struct cred { char lines[1500]; int bits, keep, dumpable; };

static void cred_look(struct cred *c)
{
	status_lines("/proc/thread-self/status", CRED_LINES, c->lines, sizeof c->lines);
	c->bits = prctl(PR_GET_SECUREBITS);
	c->keep = prctl(PR_GET_KEEPCAPS);
	c->dumpable = prctl(PR_GET_DUMPABLE);
}

static void cred_check(const char *who, const struct cred *was)
{
	struct cred is;
	cred_look(&is);
	same(who, is.lines, was->lines);
	eq("securebits", is.bits, was->bits);
	eq("keepcaps", is.keep, was->keep);
	eq("dumpable", is.dumpable, was->dumpable);
}

static void capset_to(uint64_t eff, uint64_t prm, uint64_t inh)
{
	struct __user_cap_header_struct h = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct d[2] = {
		{ eff, prm, inh }, { eff >> 32, prm >> 32, inh >> 32 },
	};
	must("capset", syscall(SYS_capset, &h, d));
}

static int arrived, leave; // futexes of this file's threads

static void arrive_and_wait(void)
{
	__atomic_add_fetch(&arrived, 1, __ATOMIC_SEQ_CST);
	while (!__atomic_load_n(&leave, __ATOMIC_SEQ_CST))
		syscall(SYS_futex, &leave, 0, 0, NULL, NULL, 0);
}

static void await(int n)
{
	while (__atomic_load_n(&arrived, __ATOMIC_SEQ_CST) < n)
		usleep(1000);
}

static void let_go(void)
{
	__atomic_store_n(&leave, 1, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, &leave, 1, 1000, NULL, NULL, 0);
}

// other_user has credentials of its own: the raw calls change one thread.
static void *other_user(void *arg)
{
	struct cred was;
	gid_t groups[] = { 4, 3000000000u, 20 };
	must("setgroups", syscall(SYS_setgroups, 3, groups));
	must("setresgid", syscall(SYS_setresgid, 50, 51, 52));
	must("setfsgid", syscall(SYS_setfsgid, 50));
	must("setresuid", syscall(SYS_setresuid, 60, 61, 62));
	cred_look(&was);
	arrive_and_wait();
	cred_check("credentials of a thread", &was);
	return arg;
}

// creds_as_root makes raw calls: those of glibc change every thread.
static void creds_as_root(void)
{
	uint64_t some = 1 << CAP_KILL | 1 << CAP_NET_RAW | 1 << CAP_SETPCAP | 1 << CAP_SETUID | 1 << CAP_SETGID;
	gid_t groups[] = { 5, 10, 1000, 65534 };
	must("setgroups", syscall(SYS_setgroups, 4, groups));
	must("drop from bounding set", prctl(PR_CAPBSET_DROP, CAP_MKNOD));
	must("securebits", prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP | SECBIT_NO_SETUID_FIXUP_LOCKED |
		SECBIT_NOROOT));
	capset_to(some, some, 1 << CAP_KILL | 1 << CAP_NET_RAW);
	must("ambient", prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_KILL, 0, 0));
	must("setresgid", syscall(SYS_setresgid, 100, 101, 102));
	must("setresuid", syscall(SYS_setresuid, 200, 201, 202));
	capset_to(1 << CAP_KILL, some, 1 << CAP_KILL | 1 << CAP_NET_RAW);
}

static void creds(char **argv)
{
	(void)argv;
	struct cred was;
	pthread_t t;
	bool root = geteuid() == 0;
	if (root) {
		eq("pthread_create", pthread_create(&t, NULL, other_user, NULL), 0);
		await(1);
		creds_as_root();
	}
	must("no_new_privs", prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	cred_look(&was);
	ready();
	wait_go();
	cred_check("credentials", &was);
	let_go();
	if (root)
		pthread_join(t, NULL);
}

// answer installs a filter that answers one call with an error.
static void answer(int nr, int error, unsigned flags)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = { 4, code };
	must("seccomp", syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &prog));
}

static long errno_of(int nr)
{
	return syscall(nr, 99999, 0, 0) == -1 ? errno : 0;
}

static void *filtered(void *arg)
{
	struct cred was;
	answer(SYS_getpriority, 79, SECCOMP_FILTER_FLAG_LOG);
	cred_look(&was);
	arrive_and_wait();
	eq("filtered call of a thread", errno_of(SYS_getpriority), 79);
	eq("filtered call of all", errno_of(SYS_sched_get_priority_max), 77);
	cred_check("filters of a thread", &was);
	return arg;
}

static void seccomp_child(struct meeting *m, bool with)
{
	struct cred was;
	if (with)
		answer(SYS_getpgid, 80, 0);
	cred_look(&was);
	meeting_arrive(m);
	wait_go();
	eq("getpgid of a child", errno_of(SYS_getpgid), with ? 80 : ESRCH);
	eq("priority of a child", errno_of(SYS_sched_get_priority_max), EINVAL);
	cred_check("filters of a child", &was);
	_exit(0);
}

static void seccomp(char **argv)
{
	(void)argv;
	struct meeting m;
	pthread_t t;
	pid_t pid[2];
	struct cred was;
	meeting_make(&m);
	must("no_new_privs", prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	for (int i = 0; i < 2; i++)
		if ((pid[i] = must("fork", fork())) == 0)
			seccomp_child(&m, i);
	answer(SYS_sched_get_priority_max, 77, 0);
	eq("pthread_create", pthread_create(&t, NULL, filtered, NULL), 0);
	await(1);
	cred_look(&was);
	meeting_wait(&m, 2);
	ready();
	wait_go();
	eq("filtered call", errno_of(SYS_sched_get_priority_max), 77);
	eq("call filtered in a thread only", errno_of(SYS_getpriority), EINVAL);
	cred_check("filters", &was);
	let_go();
	pthread_join(t, NULL);
	reap(pid[0]);
	reap(pid[1]);
}

struct sched { int policy, prio, nice, ioprio; long slack; cpu_set_t cpus; };

static void sched_look(struct sched *s)
{
	struct sched_param p = { 0 };
	memset(s, 0, sizeof *s);
	s->policy = sched_getscheduler(0);
	sched_getparam(0, &p);
	s->prio = p.sched_priority;
	s->nice = getpriority(PRIO_PROCESS, 0);
	s->ioprio = syscall(SYS_ioprio_get, 1, 0);
	s->slack = prctl(PR_GET_TIMERSLACK);
	sched_getaffinity(0, sizeof s->cpus, &s->cpus);
}

static void sched_check(const struct sched *was)
{
	struct sched is;
	sched_look(&is);
	eq("policy", is.policy, was->policy);
	eq("priority", is.prio, was->prio);
	eq("nice", is.nice, was->nice);
	eq("ioprio", is.ioprio, was->ioprio);
	eq("timer slack", is.slack, was->slack);
	eq("affinity", CPU_EQUAL(&is.cpus, &was->cpus), true);
}

static void *batch(void *arg)
{
	struct sched was;
	struct sched_param p = { 0 };
	cpu_set_t one;
	CPU_ZERO(&one);
	CPU_SET(0, &one);
	must("affinity", syscall(SYS_sched_setaffinity, 0, sizeof one, &one));
	must("batch", sched_setscheduler(0, arg ? SCHED_BATCH : SCHED_IDLE, &p));
	if (arg)
		must("nice", setpriority(PRIO_PROCESS, 0, 7));
	must("slack", prctl(PR_SET_TIMERSLACK, 123456));
	must("ioprio", syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 6));
	sched_look(&was);
	arrive_and_wait();
	sched_check(&was);
	return NULL;
}

static void sched(char **argv)
{
	(void)argv;
	struct sched was;
	pthread_t t[2];
	for (long i = 0; i < 2; i++)
		eq("pthread_create", pthread_create(&t[i], NULL, batch, (void *)i), 0);
	await(2);
	must("nice", setpriority(PRIO_PROCESS, 0, 3));
	sched_look(&was);
	ready();
	wait_go();
	sched_check(&was);
	let_go();
	for (int i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
}

struct limits { struct rlimit r[RLIM_NLIMITS]; };

static void limits_look(struct limits *l)
{
	memset(l, 0, sizeof *l);
	for (int i = 0; i < RLIM_NLIMITS; i++)
		must("getrlimit", getrlimit(i, &l->r[i]));
}

static void limits(char **argv)
{
	(void)argv;
	struct limits was, is;
	struct rlimit r;
	static const struct { int what; rlim_t soft; } set[] = {
		{ RLIMIT_NOFILE, 123 }, { RLIMIT_CORE, 0 }, { RLIMIT_STACK, 1 << 20 }, { RLIMIT_SIGPENDING, 99 },
		{ RLIMIT_FSIZE, 1ull << 40 }, { RLIMIT_CPU, 100000 }, { RLIMIT_MEMLOCK, 4096 },
	};
	for (size_t i = 0; i < sizeof set / sizeof *set; i++) {
		getrlimit(set[i].what, &r);
		r.rlim_cur = set[i].soft;
		if (set[i].what == RLIMIT_FSIZE)
			r.rlim_max = 1ull << 41;
		must("setrlimit", setrlimit(set[i].what, &r));
	}
	limits_look(&was);
	ready();
	wait_go();
	limits_look(&is);
	for (int i = 0; i < RLIM_NLIMITS; i++) {
		eq("soft limit", is.r[i].rlim_cur, was.r[i].rlim_cur);
		eq("hard limit", is.r[i].rlim_max, was.r[i].rlim_max);
	}
}

struct flags { int dumpable, death, reaper, thp, tsc, personality, adj, mce; };

static void flags_look(struct flags *f)
{
	char buf[32];
	memset(f, 0, sizeof *f);
	f->dumpable = prctl(PR_GET_DUMPABLE);
	prctl(PR_GET_PDEATHSIG, &f->death);
	prctl(PR_GET_CHILD_SUBREAPER, &f->reaper);
	prctl(PR_GET_TSC, &f->tsc);
	f->thp = prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0);
	f->mce = prctl(PR_MCE_KILL_GET, 0, 0, 0, 0);
	f->personality = personality(0xffffffff);
	slurp("/proc/self/oom_score_adj", buf, sizeof buf);
	f->adj = atoi(buf);
}

static void flags_check(const char *who, const struct flags *was)
{
	struct flags is;
	flags_look(&is);
	eq(who, is.dumpable, was->dumpable);
	eq("pdeathsig", is.death, was->death);
	eq("subreaper", is.reaper, was->reaper);
	eq("thp disable", is.thp, was->thp);
	eq("tsc", is.tsc, was->tsc);
	eq("mce kill", is.mce, was->mce);
	eq("personality", is.personality, was->personality);
	eq("oom_score_adj", is.adj, was->adj);
}

static void flags_child(struct meeting *m)
{
	struct flags was;
	must("pdeathsig", prctl(PR_SET_PDEATHSIG, SIGUSR2));
	must("subreaper", prctl(PR_SET_CHILD_SUBREAPER, 1));
	must("thp", prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
	must("personality", personality(UNAME26));
	int fd = must("oom_score_adj", open("/proc/self/oom_score_adj", O_WRONLY));
	must("oom_score_adj", write(fd, "654", 3));
	close(fd);
	must("dumpable", prctl(PR_SET_DUMPABLE, 0));
	flags_look(&was);
	meeting_arrive(m);
	wait_go();
	flags_check("dumpable of a child", &was);
	_exit(0);
}

static void taskflags(char **argv)
{
	(void)argv;
	struct meeting m;
	struct flags was;
	meeting_make(&m);
	pid_t pid = must("fork", fork());
	if (pid == 0)
		flags_child(&m);
	must("mce", prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0));
	flags_look(&was);
	meeting_wait(&m, 1);
	ready();
	wait_go();
	flags_check("dumpable", &was);
	reap(pid);
}

const struct prog cred_progs[] = {
	{ "creds", creds }, { "seccomp", seccomp }, { "sched", sched }, { "limits", limits },
	{ "taskflags", taskflags }, { NULL, NULL },
};
