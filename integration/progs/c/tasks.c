// Tasks: the tree of processes, zombies, stopped tasks, what a task is called.
#include "prog.h"
#include <pthread.h>
#include <sys/auxv.h>

struct ids { pid_t pid, ppid, pgid, sid, tid; };

static struct ids ids(void)
{
	return (struct ids){ getpid(), getppid(), getpgid(0), getsid(0), syscall(SYS_gettid) };
}

// member is one process of the tree: it arrives, waits, and must be who it was.
static void member(struct meeting *m, pid_t want_ppid)
{
	while (want_ppid && getppid() != want_ppid)
		usleep(1000); // an orphan before its adoption
	struct ids was = ids();
	meeting_arrive(m);
	wait_go();
	struct ids is = ids();
	eq("pid", is.pid, was.pid);
	eq("ppid", is.ppid, was.ppid);
	eq("process group", is.pgid, was.pgid);
	eq("session", is.sid, was.sid);
	eq("tid", is.tid, was.tid);
	int status;
	while (waitpid(-1, &status, 0) > 0)
		eq("status of a member of the tree", status, 0);
	eq("children left", errno, ECHILD);
}

static pid_t spawn(void)
{
	return must("fork", fork());
}

#define CHILD(...) do { if (spawn() == 0) { __VA_ARGS__; _exit(0); } } while (0)

static void chain(struct meeting *m, int depth)
{
	if (depth > 0)
		CHILD(chain(m, depth - 1));
	member(m, 0);
}

static void tree(char **argv)
{
	(void)argv;
	struct meeting m;
	meeting_make(&m);
	CHILD( // a session with two groups
		setsid();
		CHILD(setpgid(0, 0); member(&m, 0));
		CHILD(member(&m, 0));
		member(&m, 0));
	pid_t lost = spawn();
	if (lost == 0) { // a group whose leader is dead
		setpgid(0, 0);
		CHILD(member(&m, 1));
		_exit(0);
	}
	reap(lost);
	lost = spawn();
	if (lost == 0) { // a session whose leader is dead, with two groups
		setsid();
		CHILD(member(&m, 1));
		CHILD(setpgid(0, 0); member(&m, 1));
		_exit(0);
	}
	reap(lost);
	CHILD(chain(&m, 4));
	struct ids was = ids();
	meeting_wait(&m, 3 + 1 + 2 + 5);
	ready();
	wait_go();
	struct ids is = ids();
	eq("init's bytes that differ", memcmp(&is, &was, sizeof is), 0);
	int status, n = 0;
	for (; waitpid(-1, &status, 0) > 0; n++)
		eq("status of a child", status, 0);
	eq("children of init", n, 1 + 1 + 2 + 1);
}

struct zombie { pid_t pid; siginfo_t si; char status[600]; pid_t pgid, sid; };

static void look(struct zombie *z)
{
	char path[64];
	memset(&z->si, 0, sizeof z->si);
	must("waitid", waitid(P_PID, z->pid, &z->si, WEXITED | WNOWAIT));
	snprintf(path, sizeof path, "/proc/%d/status", z->pid);
	status_lines(path, "Name State Uid Gid Groups PPid", z->status, sizeof z->status);
	z->pgid = getpgid(z->pid);
	z->sid = getsid(z->pid);
}

static void die(int how)
{
	prctl(PR_SET_NAME, how == 1 ? "dead one" : "dead");
	switch (how) {
	case 0: _exit(7);
	case 1: setsid(); raise(SIGTERM); break;
	case 2: setpgid(0, 0); _exit(0);
	case 3: if (setresgid(77, 77, 77) == 0 && setresuid(1234, 1234, 1234) == 0) _exit(9);
	}
	_exit(1);
}

static void zombie(char **argv)
{
	(void)argv;
	struct zombie z[4], now_z;
	for (int i = 0; i < 4; i++) {
		if ((z[i].pid = spawn()) == 0)
			die(i);
		look(&z[i]);
	}
	ready();
	wait_go();
	for (int i = 0; i < 4; i++) {
		now_z.pid = z[i].pid;
		look(&now_z);
		eq("si_pid", now_z.si.si_pid, z[i].pid);
		eq("si_code", now_z.si.si_code, z[i].si.si_code);
		eq("si_status", now_z.si.si_status, z[i].si.si_status);
		eq("si_uid", now_z.si.si_uid, z[i].si.si_uid);
		eq("pgid of a zombie", now_z.pgid, z[i].pgid);
		eq("sid of a zombie", now_z.sid, z[i].sid);
		same("status of a zombie", now_z.status, z[i].status);
		eq("waitpid", waitpid(z[i].pid, NULL, 0), z[i].pid);
	}
}

static char state_of(pid_t pid)
{
	char path[64], buf[1024];
	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	slurp(path, buf, sizeof buf);
	return strrchr(buf, ')')[2];
}

static void *count(void *at)
{
	for (;;)
		++*(volatile long *)at;
	return NULL;
}

// stopper stops itself and must go on where it was.
static void stopper(int sig, bool threads)
{
	static long counter;
	pthread_t t;
	if (threads)
		eq("pthread_create", pthread_create(&t, NULL, count, &counter), 0);
	setpgid(0, 0);
	uint64_t mark = 0x5ca1ab1e;
	must("kill", kill(getpid(), sig));
	eq("mark on the stack", mark, 0x5ca1ab1e);
	long was = counter;
	while (threads && *(volatile long *)&counter == was)
		sched_yield();
	while (access("/ctl/seen", F_OK) != 0)
		usleep(1000); // until the parent has seen us go on
	_exit(0);
}

static void stopped(char **argv)
{
	(void)argv;
	static const struct { int sig; bool threads, seen; } kinds[] = {
		{ SIGSTOP, false, true }, { SIGTSTP, false, false }, { SIGSTOP, true, true }, { SIGTTIN, true, false },
	};
	pid_t pid[4];
	siginfo_t si;
	int status;
	for (int i = 0; i < 4; i++) {
		if ((pid[i] = spawn()) == 0)
			stopper(kinds[i].sig, kinds[i].threads);
		must("waitid", waitid(P_PID, pid[i], &si, WSTOPPED | (kinds[i].seen ? 0 : WNOWAIT)));
		eq("stop signal", si.si_status, kinds[i].sig);
	}
	ready();
	wait_go();
	for (int i = 0; i < 4; i++) {
		eq("state of a stopped task", state_of(pid[i]), 'T');
		si.si_pid = 0;
		must("waitid", waitid(P_PID, pid[i], &si, WSTOPPED | WNOHANG));
		eq("pid whose stop is news", si.si_pid, kinds[i].seen ? 0 : pid[i]);
		if (!kinds[i].seen)
			eq("stop signal afterwards", si.si_status, kinds[i].sig);
		must("kill", kill(pid[i], SIGCONT));
		eq("waitpid", waitpid(pid[i], &status, WCONTINUED), pid[i]);
		eq("WIFCONTINUED", WIFCONTINUED(status), true);
	}
	close(must("open", open("/ctl/seen", O_WRONLY | O_CREAT, 0666)));
	for (int i = 0; i < 4; i++)
		reap(pid[i]);
}

static char before[4][8192], after[4][8192];

static void identity_files(char buf[4][8192], size_t n[4])
{
	static const char *const names[4] = { "cmdline", "environ", "auxv", "comm" };
	for (int i = 0; i < 4; i++) {
		char path[64];
		snprintf(path, sizeof path, "/proc/self/%s", names[i]);
		n[i] = slurp(path, buf[i], 8192);
	}
}

static void links(char *buf, size_t size)
{
	static const char *const names[] = { "exe", "cwd", "root" };
	buf[0] = 0;
	for (int i = 0; i < 3; i++) {
		char path[64], to[256];
		snprintf(path, sizeof path, "/proc/self/%s", names[i]);
		ssize_t n = must(path, readlink(path, to, sizeof to - 1));
		to[n] = 0;
		size_t used = strlen(buf);
		snprintf(buf + used, size - used, "%s=%s ", names[i], to);
	}
}

static void identity(char **argv)
{
	char was[600], is[600];
	size_t n[4], m[4];
	prctl(PR_SET_NAME, "odd) (name");
	memset(argv[0], 'X', strlen(argv[0])); // what setproctitle does
	setenv("LATE", "not in the first environment", 1);
	must("mkdir", mkdir("/ctl/here", 0777));
	must("chdir", chdir("/ctl/here"));
	umask(0137);
	links(was, sizeof was);
	identity_files(before, n);
	ready();
	wait_go();
	eq("umask", umask(0), 0137);
	links(is, sizeof is);
	same("links", is, was);
	identity_files(after, m);
	static const char *const what[4] = { "cmdline", "environ", "auxv", "comm" };
	for (int i = 0; i < 4; i++) {
		eq(what[i], m[i], n[i]);
		eq(what[i], memcmp(before[i], after[i], n[i]), 0);
	}
	same("LATE", getenv("LATE"), "not in the first environment");
}

// other_exe is what the child of exes runs, from another file.
static void other_exe(char **argv)
{
	char to[256];
	struct meeting m = { { atoi(argv[2]), atoi(argv[3]) } };
	meeting_arrive(&m);
	wait_go();
	ssize_t n = must("readlink", readlink("/proc/self/exe", to, sizeof to - 1));
	to[n] = 0;
	same("exe", to, "/bin/other");
	_exit(0);
}

static void chrooted(struct meeting *m)
{
	must("chroot", chroot("/ctl"));
	must("chdir", chdir("/jail"));
	ctl = "";
	meeting_arrive(m);
	wait_go();
	char cwd[64];
	same("cwd in the jail", getcwd(cwd, sizeof cwd), "/jail");
	eq("file of the outer root", access("/bin/cprogs", F_OK), -1);
	_exit(0);
}

static void exes(char **argv)
{
	(void)argv;
	struct meeting m;
	meeting_make(&m);
	must("mkdir", mkdir("/ctl/jail", 0777));
	bool jail = geteuid() == 0;
	pid_t a = spawn(), b = 0;
	if (a == 0) {
		char r[12], w[12];
		snprintf(r, sizeof r, "%d", m.fd[0]);
		snprintf(w, sizeof w, "%d", m.fd[1]);
		execl("/bin/other", "another", "other-exe", r, w, NULL);
		fail("execl: %s", strerror(errno));
	}
	if (jail && (b = spawn()) == 0)
		chrooted(&m);
	meeting_wait(&m, 1 + jail);
	ready();
	wait_go();
	reap(a);
	if (jail)
		reap(b);
}

// nextpid looks whether the numbering of pids goes on.
static void nextpid(char **argv)
{
	(void)argv;
	pid_t last = spawn();
	if (last == 0)
		_exit(0);
	reap(last);
	ready();
	wait_go();
	pid_t next = spawn();
	if (next == 0)
		_exit(0);
	reap(next);
	eq("next pid", next, last + 1);
}

static int shared_vm_child(void *arg)
{
	*(volatile int *)arg = 1;
	for (;;)
		pause();
	return 0;
}

// sharedvm is two processes with one memory.
static void sharedvm(char **argv)
{
	(void)argv;
	static char stack[65536] __attribute__((aligned(16)));
	static volatile int told;
	int status;
	pid_t pid = must("clone", clone(shared_vm_child, stack + sizeof stack, CLONE_VM | SIGCHLD, (void *)&told));
	while (!told)
		sched_yield();
	ready();
	wait_go();
	must("kill", kill(pid, SIGKILL));
	eq("waitpid", waitpid(pid, &status, 0), pid);
	eq("status", status, SIGKILL);
}

const struct prog task_progs[] = {
	{ "tree", tree }, { "zombie", zombie }, { "stopped", stopped }, { "identity", identity },
	{ "exes", exes }, { "other-exe", other_exe }, { "nextpid", nextpid },
	{ "sharedvm", sharedvm }, { NULL, NULL },
};
