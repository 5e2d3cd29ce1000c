// What goes on beside the writers of the snapshot program: everything that
// changes an address space or the set of tasks. Each checks itself all the time.
#include "snapshot.h"
#include <spawn.h>

#ifndef MADV_COLLAPSE // not in the headers of Linux 6.0 and before
#define MADV_COLLAPSE 25
#endif

static void fork_child(struct region *r)
{
	struct hand h;
	pthread_mutex_unlock(&r->book->lock); // fork_churn holds it, and this is its copy
	r->way = STORE;
	hand_make(&h, getpid());
	for (int i = 0; i < 500; i++)
		write_once(r, &h);
	if (getpid() % 8 == 0) {
		check_own(r);
		check_log(r);
	}
	_exit(0);
}

// fork_churn has up to four children that write to pages that they share with
// their parent, check them and end.
static void *fork_churn(void *arg)
{
	struct region *r = arg;
	int alive = 0;
	if (r->shared)
		fail("churn by fork wants private memory");
	while (!stopped(r) || alive > 0) {
		if (alive == 4 || stopped(r)) {
			int status = -1;
			must("wait", wait(&status));
			eq("status of a child", status, 0);
			alive--;
			continue;
		}
		pthread_mutex_lock(&r->book->lock);
		if (must("fork", fork()) == 0)
			fork_child(r);
		pthread_mutex_unlock(&r->book->lock);
		alive++;
		usleep(10000); // or the writers hardly ever get the lock
	}
	return NULL;
}

static char *const spin_args[] = { "cprogs", "spin", NULL }, *const spin_env[] = { NULL };

static void *exec_churn(void *arg)
{
	while (!stopped(arg)) {
		pid_t pid = must("fork", fork());
		if (pid == 0) {
			execve("/bin/cprogs", spin_args, spin_env);
			_exit(9);
		}
		reap(pid);
	}
	return NULL;
}

// spawn_churn has children that run in its own memory until they exec, and keep
// it waiting for that long.
static void *spawn_churn(void *arg)
{
	while (!stopped(arg)) {
		pid_t pid;
		eq("posix_spawn", posix_spawn(&pid, "/bin/cprogs", NULL, NULL, spin_args, spin_env), 0);
		reap(pid);
	}
	return NULL;
}

// An area is a mapping of which each page holds what its tag and place say, but
// for the pages behind full, which nobody touched.
struct area { unsigned char *p; size_t pages, full; uint64_t tag; };

static void area_check(const struct area *a)
{
	for (size_t i = 0; i < a->pages; i++)
		if (i < a->full)
			stamped("page of a mapping", a->p + i * PAGE, a->tag + i);
		else
			zeroed("page that a mapping grew by", a->p + i * PAGE);
}

static void area_fill(struct area *a, uint64_t tag)
{
	a->tag = tag;
	a->full = 0;
	for (size_t i = 0; i < a->pages; i++)
		stamp(a->p + i * PAGE, tag + i);
	a->full = a->pages;
}

static unsigned char *room(size_t pages, int prot)
{
	unsigned char *p = mmap(NULL, pages * PAGE, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		fail("mmap: %s", strerror(errno));
	return p;
}

static void area_remap(struct area *a, size_t pages, int flags)
{
	unsigned char *to = flags & MREMAP_FIXED ? room(pages, PROT_NONE) : NULL;
	unsigned char *p = mremap(a->p, a->pages * PAGE, pages * PAGE, flags, to);
	if (p == MAP_FAILED)
		fail("mremap flags %#x: %s", flags, strerror(errno));
	if (flags & MREMAP_DONTUNMAP) {
		for (size_t i = 0; i < a->pages; i++)
			zeroed("page that moved away", a->p + i * PAGE);
		must("munmap", munmap(a->p, a->pages * PAGE));
	}
	a->p = p;
	a->pages = pages;
	a->full = a->full < pages ? a->full : pages;
}

// area_step does one thing to an area.
static void area_step(struct area *a, uint64_t what, uint64_t tag)
{
	if (!a->p) {
		*a = (struct area){ .p = room(1 + what % 64, PROT_READ | PROT_WRITE), .pages = 1 + what % 64 };
		area_fill(a, tag);
		return;
	}
	area_check(a);
	switch (what % 8) {
	case 0:
		must("munmap", munmap(a->p, a->pages * PAGE));
		a->p = NULL;
		break;
	case 1: area_remap(a, a->pages, MREMAP_MAYMOVE | MREMAP_FIXED); break;
	case 2: area_remap(a, a->pages, MREMAP_MAYMOVE | MREMAP_DONTUNMAP); break;
	case 3: area_remap(a, a->pages + 8, MREMAP_MAYMOVE); break;
	case 4:
		if (a->pages > 8)
			area_remap(a, a->pages - 5, 0);
		break;
	case 5:
		must("mprotect", mprotect(a->p, a->pages * PAGE, PROT_READ));
		area_check(a);
		must("mprotect", mprotect(a->p, a->pages * PAGE, PROT_READ | PROT_WRITE));
		break;
	case 6:
		must("madvise", madvise(a->p, a->pages * PAGE, MADV_DONTNEED));
		a->full = 0;
		area_check(a);
		break;
	default: area_fill(a, tag);
	}
}

static void *maps_churn(void *arg)
{
	enum { AREAS = 32, MOST = 256 };
	static struct area areas[AREAS];
	struct hand h;
	hand_make(&h, 5);
	for (uint64_t tag = 1; !stopped(arg); tag += 1 << 16) {
		struct area *a = &areas[dice(&h) % AREAS];
		area_step(a, a->p && a->pages > MOST ? 0 : dice(&h) >> 16, tag);
	}
	for (int i = 0; i < AREAS; i++)
		if (areas[i].p)
			area_check(&areas[i]);
	return NULL;
}

// brk_churn lets the heap grow and shrink. Nobody else may use it meanwhile.
static void *brk_churn(void *arg)
{
	enum { STEP = 16, MOST = 4096 };
	struct area a = { .p = sbrk(0) };
	a.p += -(uintptr_t)a.p % PAGE;
	must("brk", brk(a.p));
	for (a.tag = 1; !stopped(arg);) {
		must("brk", brk(a.p + (a.pages + STEP) * PAGE));
		for (size_t i = a.pages; i < a.pages + STEP; i++) {
			zeroed("new page of the heap", a.p + i * PAGE);
			stamp(a.p + i * PAGE, a.tag + i);
		}
		a.full = a.pages += STEP;
		if (a.pages < MOST)
			continue;
		area_check(&a);
		must("brk", brk(a.p));
		a.full = a.pages = 0;
		a.tag += 1 << 16;
	}
	area_check(&a);
	return NULL;
}

static void *short_life(void *arg)
{
	struct hand h;
	hand_make(&h, now());
	for (int i = 0; i < 100 && !stopped(arg); i++)
		write_once(arg, &h);
	hand_end(&h);
	return NULL;
}

static void *threads_churn(void *arg)
{
	enum { LIVES = 8 };
	pthread_t t[LIVES];
	while (!stopped(arg)) {
		for (int i = 0; i < LIVES; i++)
			eq("pthread_create", pthread_create(&t[i], NULL, short_life, arg), 0);
		for (int i = 0; i < LIVES; i++)
			eq("pthread_join", pthread_join(t[i], NULL), 0);
	}
	return NULL;
}

// collapse_churn makes huge pages of small ones, and small ones of huge ones.
static void *collapse_churn(void *arg)
{
	const struct region *r = arg;
	const size_t huge = 512;
	struct hand h;
	hand_make(&h, 7);
	while (!stopped(r) && r->pages >= 2 * huge) {
		uintptr_t at = (uintptr_t)r->mem + dice(&h) % (r->pages / huge - 1) * huge * PAGE;
		void *p = (void *)((at + huge * PAGE - 1) & -(huge * PAGE));
		if (dice(&h) % 2) {
			madvise(p, huge * PAGE, MADV_COLLAPSE); // may find no memory for it: no matter
			continue;
		}
		must("mprotect", mprotect((char *)p + PAGE, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC)); // splits
		must("mprotect", mprotect((char *)p + PAGE, PAGE, PROT_READ | PROT_WRITE));
	}
	return NULL;
}

void *(*churn(const char *name))(void *)
{
	static const struct { const char *name; void *(*run)(void *); } all[] = {
		{ "fork", fork_churn }, { "exec", exec_churn }, { "spawn", spawn_churn }, { "maps", maps_churn },
		{ "brk", brk_churn }, { "threads", threads_churn }, { "collapse", collapse_churn },
	};
	for (size_t i = 0; i < sizeof all / sizeof *all; i++)
		if (strcmp(all[i].name, name) == 0)
			return all[i].run;
	fail("no churn %s", name);
}
