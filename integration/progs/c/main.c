// One static binary holds every C program: cprogs NAME [ARGS].
#include "prog.h"
#include <stdarg.h>

const char *ctl = "/ctl";
bool allow_eintr;

static const char *ctl_file(const char *name)
{
	static __thread char path[128];
	snprintf(path, sizeof path, "%s/%s", ctl, name);
	return path;
}

static void put(const char *name, const char *text)
{
	int fd = open(ctl_file(name), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		_exit(3);
	close(fd);
}

// The test looks at our descriptors as soon as ready is there: not this one.
void ready(void)
{
	char from[128];
	put("getting-ready", "ready\n");
	snprintf(from, sizeof from, "%s", ctl_file("getting-ready"));
	must("rename", rename(from, ctl_file("ready")));
}

void wait_go(void)
{
	struct timespec ts = { .tv_nsec = 5000000 };
	while (access(ctl_file("go"), F_OK) != 0)
		if (nanosleep(&ts, NULL) != 0 && !(errno == EINTR && allow_eintr))
			fail("sleep between looks for go: %s, want none", strerror(errno));
}

void fail(const char *fmt, ...)
{
	char text[600], line[640];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	snprintf(line, sizeof line, "FAIL %s (pid %d)\n", text, getpid());
	put("result", line);
	_exit(1);
}

void eq(const char *what, long long got, long long want)
{
	if (got != want)
		fail("%s: %lld (%#llx), want %lld (%#llx)", what, got, got, want, want);
}

void same(const char *what, const char *got, const char *want)
{
	if (strcmp(got, want) != 0)
		fail("%s: %.250s, want %.250s", what, got, want);
}

long must(const char *what, long ret)
{
	if (ret == -1)
		fail("%s: %s", what, strerror(errno));
	return ret;
}

size_t slurp(const char *path, char *buf, size_t size)
{
	int fd = must(path, open(path, O_RDONLY | O_CLOEXEC));
	size_t n = 0;
	ssize_t r;
	while (n < size - 1 && (r = read(fd, buf + n, size - 1 - n)) > 0)
		n += r;
	close(fd);
	buf[n] = 0;
	return n;
}

void status_lines(const char *path, const char *names, char *out, size_t size)
{
	char buf[8192], list[256];
	slurp(path, buf, sizeof buf);
	out[0] = 0;
	for (char *save, *line = strtok_r(buf, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		snprintf(list, sizeof list, "%s", names);
		for (char *s2, *name = strtok_r(list, " ", &s2); name; name = strtok_r(NULL, " ", &s2)) {
			size_t n = strlen(name), used = strlen(out);
			if (strncmp(line, name, n) == 0 && line[n] == ':')
				snprintf(out + used, size - used, "%s|", line);
		}
	}
}

static bool setting_take(const struct setting *k, const char *arg, const char *value)
{
	size_t n = strlen(k->name);
	if (n != (size_t)(value - arg) || strncmp(arg, k->name, n) != 0)
		return false;
	if (k->number)
		*k->number = atol(value + 1);
	else
		*k->text = value + 1;
	return true;
}

void settle(char **args, const struct setting *known)
{
	for (; *args; args++) {
		const char *value = strchr(*args, '=');
		const struct setting *k = known;
		while (k->name && !(value && setting_take(k, *args, value)))
			k++;
		if (!k->name)
			fail("no setting %s", *args);
	}
}

void reap(pid_t pid)
{
	int status;
	eq("waitpid", waitpid(pid, &status, 0), pid);
	eq("wait status of a child", status, 0);
}

int64_t now(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

void meeting_make(struct meeting *m)
{
	must("pipe", pipe(m->fd));
}

void meeting_arrive(struct meeting *m)
{
	must("meeting", write(m->fd[1], "x", 1));
	close(m->fd[0]);
	close(m->fd[1]);
}

// The end of the pipe says that those who have arrived have closed it, too: what
// is looked at next has nothing of it left.
void meeting_wait(struct meeting *m, int n)
{
	char c;
	close(m->fd[1]);
	for (; n > 0; n--)
		eq("meeting", read(m->fd[0], &c, 1), 1);
	eq("end of the meeting", read(m->fd[0], &c, 1), 0);
	close(m->fd[0]);
}

static const struct prog *const tables[] = {
	task_progs, cred_progs, cpu_progs, restart_progs, signal_progs, mem_progs, huge_progs, share_progs, misc_progs,
	snapshot_progs, load_progs, lazy_progs,
};

int main(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : "";
	for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
		for (const struct prog *p = tables[i]; p->name; p++)
			if (strcmp(p->name, name) == 0) {
				umask(0);
				allow_eintr = getenv("ALLOW_EINTR") != NULL; // for engines that know no better
				p->run(argv);
				put("result", "ok\n");
				return 0;
			} else if (strcmp(name, "list") == 0) {
				puts(p->name);
			}
	return strcmp(name, "list") == 0 ? 0 : 2;
}
