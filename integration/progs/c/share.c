// Memory that processes share, and pages that a fork left in common.
#include "prog.h"
#include <sys/socket.h>

#define PAGE 4096UL

static unsigned char *map(size_t n, int flags, int fd)
{
	unsigned char *p = mmap(NULL, n, PROT_READ | PROT_WRITE, flags, fd, 0);
	if (p == MAP_FAILED)
		fail("mmap flags %#x: %s", flags, strerror(errno));
	return p;
}

enum { ANON_SHARED, MEMFD, POSIX_SHM, DISK, KINDS };
static const char *const kinds[KINDS] = { "anonymous", "memfd", "POSIX shm", "file" };

static unsigned char *shared(int kind)
{
	int fd = -1;
	switch (kind) {
	case ANON_SHARED: return map(8 * PAGE, MAP_SHARED | MAP_ANONYMOUS, -1);
	case MEMFD: fd = must("memfd", memfd_create("shared thing", MFD_ALLOW_SEALING)); break;
	case POSIX_SHM: fd = must("shm_open", shm_open("/seg", O_RDWR | O_CREAT, 0666)); break;
	case DISK: fd = must("open", open("/ctl/shared", O_RDWR | O_CREAT, 0666)); break;
	}
	must("ftruncate", ftruncate(fd, 8 * PAGE));
	unsigned char *p = map(8 * PAGE, MAP_SHARED, fd);
	close(fd);
	return p;
}

static void sharing_child(struct meeting *m, unsigned char **p)
{
	for (int k = 0; k < KINDS; k++)
		p[k][PAGE] = 'c';
	meeting_arrive(m);
	wait_go();
	for (int k = 0; k < KINDS; k++) {
		while (*(volatile unsigned char *)&p[k][2 * PAGE] != 'p')
			usleep(1000); // the parent's write, after go
		eq(kinds[k], p[k][0], 'f');
		p[k][3 * PAGE] = 'd';
	}
	_exit(0);
}

static void sharing(char **argv)
{
	(void)argv;
	struct meeting m;
	unsigned char *p[KINDS];
	meeting_make(&m);
	for (int k = 0; k < KINDS; k++) {
		p[k] = shared(k);
		p[k][0] = 'f';
	}
	unsigned char *twice = mremap(p[ANON_SHARED], 0, 4 * PAGE, MREMAP_MAYMOVE); // the same pages again
	pid_t pid = must("fork", fork());
	if (pid == 0)
		sharing_child(&m, p);
	meeting_wait(&m, 1);
	ready();
	wait_go();
	for (int k = 0; k < KINDS; k++)
		p[k][2 * PAGE] = 'p';
	reap(pid);
	for (int k = 0; k < KINDS; k++) {
		eq(kinds[k], p[k][PAGE], 'c');
		eq(kinds[k], p[k][3 * PAGE], 'd');
		eq(kinds[k], p[k][4 * PAGE], 0);
	}
	if (twice != MAP_FAILED)
		eq("second mapping of the same pages", twice[3 * PAGE], 'd');
}

static void tokens(unsigned char *p, size_t from, size_t to, unsigned who)
{
	for (size_t i = from; i < to; i++)
		memset(p + i * PAGE, (int)(who + i), PAGE);
}

static void tokens_check(const char *what, const unsigned char *p, size_t from, size_t to, unsigned who)
{
	for (size_t i = from; i < to; i++)
		for (size_t j = 0; j < PAGE; j += 511)
			eq(what, p[i * PAGE + j], (unsigned char)(who + i));
}

#define COW_PAGES 300

static void cow_child(struct meeting *m, unsigned char *p, unsigned char *moved)
{
	tokens(p, 100, 200, 40);
	must("dontneed", madvise(p + 20 * PAGE, 5 * PAGE, MADV_DONTNEED));
	unsigned char *to = mremap(moved, 10 * PAGE, 10 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, p + 280 * PAGE);
	eq("mremap", (long)to, (long)(p + 280 * PAGE));
	pid_t pid = must("fork", fork());
	if (pid == 0)
		tokens(p, 150, 160, 60);
	meeting_arrive(m);
	wait_go();
	tokens_check("page from the parent", p, 0, 20, 10);
	tokens_check("page given back", p, 20, 20, 0);
	for (size_t i = 20; i < 25; i++)
		eq("page given back", p[i * PAGE], 0);
	tokens_check("page of the child", p, 100, 150, 40);
	tokens_check("page of the grandchild", p, 150, 160, pid == 0 ? 60 : 40);
	tokens_check("page of the child", p, 160, 200, 40);
	tokens_check("page from before the fork", p, 200, 280, 10);
	tokens_check("page that moved", p + 280 * PAGE, 0, 10, 90);
	tokens(p, 0, 100, 77);
	if (pid == 0)
		_exit(0);
	reap(pid);
	_exit(0);
}

static void cow(char **argv)
{
	(void)argv;
	struct meeting m;
	meeting_make(&m);
	unsigned char *p = map(COW_PAGES * PAGE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	unsigned char *moved = map(10 * PAGE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	tokens(p, 0, COW_PAGES, 10);
	tokens(moved, 0, 10, 90);
	pid_t pid = must("fork", fork());
	if (pid == 0)
		cow_child(&m, p, moved);
	tokens(p, 50, 100, 130);
	meeting_wait(&m, 2);
	ready();
	wait_go();
	reap(pid);
	tokens_check("page of the parent", p, 0, 50, 10);
	tokens_check("page written after the fork", p, 50, 100, 130);
	tokens_check("page the child wrote", p, 100, COW_PAGES, 10);
	tokens_check("page that the child moved", moved, 0, 10, 90);
}

// prefork is a server of many children, which share what their parent had read
// in and write a few pages of it each. The last has a child of its own.
static void prefork_child(struct meeting *m, unsigned char *p, size_t pages, unsigned who)
{
	bool last = who == 0;
	pid_t pid = 0;
	tokens(p, who, who + 8, 100 + who);
	must("dontneed", madvise(p + (pages - 4) * PAGE, 4 * PAGE, MADV_DONTNEED));
	if (last && (pid = must("fork", fork())) == 0) {
		tokens(p, 16, 24, 33);
		meeting_arrive(m);
		wait_go();
		tokens_check("page of the grandchild", p, 16, 24, 33);
	} else {
		meeting_arrive(m);
		wait_go();
	}
	tokens_check("page of a child", p, who, who + 8, 100 + who);
	tokens_check("page of the parent", p, 64, pages - 4, 10);
	for (size_t i = pages - 4; i < pages; i++)
		eq("page given back", p[i * PAGE], 0);
	if (pid > 0)
		reap(pid);
	_exit(0);
}

static void prefork(char **argv)
{
	size_t pages = strtoul(argv[2], NULL, 10) << 8;
	int children = atoi(argv[3]);
	pid_t pids[64];
	struct meeting m;
	meeting_make(&m);
	unsigned char *p = map(pages * PAGE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	if (argv[4]) // "huge"
		must("advice", madvise(p, pages * PAGE, MADV_HUGEPAGE));
	tokens(p, 0, pages, 10);
	for (int i = 0; i < children; i++)
		if ((pids[i] = must("fork", fork())) == 0)
			prefork_child(&m, p, pages, i);
	meeting_wait(&m, children + 1);
	ready();
	wait_go();
	for (int i = 0; i < children; i++)
		reap(pids[i]);
	tokens_check("page of the parent", p, 0, pages, 10);
}

const struct prog share_progs[] = { { "sharing", sharing }, { "cow", cow }, { "prefork", prefork }, { NULL, NULL } };
