// Huge pages: those that the kernel makes of memory, and those of its pool.
#include "prog.h"

#define SMALL 4096UL
#define HUGE (2UL << 20)

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

// area is aligned memory between pages that can't be used, so that its mappings
// are its own.
static unsigned char *area(size_t huge_pages)
{
	unsigned char *p = mmap(NULL, (huge_pages + 2) * HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		fail("mmap: %s", strerror(errno));
	p = (unsigned char *)(((uintptr_t)p + HUGE) & ~(HUGE - 1));
	must("mprotect", mprotect(p, huge_pages * HUGE, PROT_READ | PROT_WRITE));
	return p;
}

struct usage { long rss, huge, pool; };

// usage_of adds up what smaps says of the mappings in a range, in KiB.
static struct usage usage_of(const unsigned char *at, size_t size)
{
	struct usage u = { 0 };
	char line[512];
	bool in = false;
	FILE *f = fopen("/proc/self/smaps", "re");
	if (!f)
		fail("smaps: %s", strerror(errno));
	while (fgets(line, sizeof line, f)) {
		unsigned long start, end;
		long n;
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			in = start >= (uintptr_t)at && end <= (uintptr_t)at + size;
		if (in && sscanf(line, "Rss: %ld", &n) == 1)
			u.rss += n;
		if (in && sscanf(line, "AnonHugePages: %ld", &n) == 1)
			u.huge += n;
		if (in && sscanf(line, "Private_Hugetlb: %ld", &n) == 1)
			u.pool += n;
	}
	fclose(f);
	return u;
}

static void scribble(unsigned char *p, size_t from, size_t to, size_t step, unsigned seed)
{
	for (size_t i = from; i < to; i += step)
		memset(p + i, (int)(seed + i / SMALL) | 1, SMALL);
}

static void scribbled(const char *what, const unsigned char *p, size_t from, size_t to, size_t step, unsigned seed)
{
	for (size_t i = from; i < to; i += step)
		for (size_t j = 0; j < SMALL; j += 511)
			eq(what, p[i + j], (unsigned char)((seed + i / SMALL) | 1));
}

enum { ADVISED, SPARSE, COLLAPSED, ZEROS, AREAS };
static const char *const names[AREAS] = { "advised", "sparse", "collapsed", "zeros" };

static void huge(char **argv)
{
	(void)argv;
	unsigned char *p[AREAS];
	struct usage was[AREAS];
	for (int i = 0; i < AREAS; i++)
		p[i] = area(4);
	must("advice", madvise(p[ADVISED], 4 * HUGE, MADV_HUGEPAGE));
	scribble(p[ADVISED], 0, 3 * HUGE, SMALL, 1); // the fourth is not touched
	must("advice", madvise(p[SPARSE], 4 * HUGE, MADV_NOHUGEPAGE));
	scribble(p[SPARSE], 0, 4 * HUGE, 16 * SMALL, 2);
	must("advice", madvise(p[SPARSE], 4 * HUGE, MADV_HUGEPAGE)); // too late for what is there
	scribble(p[COLLAPSED], HUGE, 3 * HUGE, 2 * SMALL, 3);
	must("collapse", madvise(p[COLLAPSED] + HUGE, 2 * HUGE, MADV_COLLAPSE));
	must("advice", madvise(p[ZEROS], 4 * HUGE, MADV_HUGEPAGE));
	p[ZEROS][2 * HUGE] = 0;
	for (int i = 0; i < AREAS; i++)
		was[i] = usage_of(p[i], 4 * HUGE);
	if (was[ADVISED].huge == 0 || was[COLLAPSED].huge == 0)
		fail("the kernel gave no huge pages");
	ready();
	wait_go();
	for (int i = 0; i < AREAS; i++) {
		struct usage is = usage_of(p[i], 4 * HUGE);
		if (is.huge != was[i].huge || is.rss != was[i].rss)
			fail("%s: %ld KiB, %ld of them huge, want %ld and %ld", names[i], is.rss, is.huge, was[i].rss, was[i].huge);
	}
	scribbled("advised", p[ADVISED], 0, 3 * HUGE, SMALL, 1);
	scribbled("sparse", p[SPARSE], 0, 4 * HUGE, 16 * SMALL, 2);
	scribbled("collapsed", p[COLLAPSED], HUGE, 3 * HUGE, 2 * SMALL, 3);
	eq("collapsed, between", p[COLLAPSED][HUGE + SMALL], 0);
	eq("not touched", p[ADVISED][3 * HUGE], 0);
	eq("zeros", p[ZEROS][2 * HUGE + 5], 0);
}

// hugetlb holds memory of the pool: some pages filled, one of zeros, one not
// touched, and a mapping that can't be written.
static void hugetlb(char **argv)
{
	(void)argv;
	unsigned char *p = mmap(NULL, 6 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	if (p == MAP_FAILED)
		fail("mmap of huge pages: %s", strerror(errno));
	scribble(p, 0, 2 * HUGE, SMALL, 4);
	scribble(p, 4 * HUGE, 6 * HUGE, 8 * SMALL, 5);
	must("mprotect", mprotect(p + 4 * HUGE, 2 * HUGE, PROT_READ));
	eq("huge pages of the pool", usage_of(p, 6 * HUGE).pool, 4 * 2048);
	ready();
	wait_go();
	eq("huge pages of the pool", usage_of(p, 6 * HUGE).pool, 4 * 2048);
	scribbled("filled", p, 0, 2 * HUGE, SMALL, 4);
	scribbled("read only", p, 4 * HUGE, 6 * HUGE, 8 * SMALL, 5);
	eq("between", p[4 * HUGE + SMALL], 0);
	scribble(p, 2 * HUGE, 4 * HUGE, SMALL, 6); // reserved, so it is there
	scribbled("new", p, 2 * HUGE, 4 * HUGE, SMALL, 6);
}

const struct prog huge_progs[] = { { "huge", huge }, { "hugetlb", hugetlb }, { NULL, NULL } };
