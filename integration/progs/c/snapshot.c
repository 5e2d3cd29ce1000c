// Programs that write all the time and can tell whether what was saved of them
// is one instant: each write gets a number, and a book, in other memory, says
// what every page must hold. A page that is older or newer than the book, or a
// book that is older than its own newest line, gives a snapshot away.
#include "snapshot.h"
#include <sys/uio.h>

#define RUN 16UL          // pages that are read at once from a file
#define FILE_PAGES 2048UL // of the file for DIRECT
#define GOLDEN 0x9e3779b97f4a7c15u

void stamp(unsigned char *page, uint64_t tag)
{
	uint64_t *w = (uint64_t *)page;
	for (size_t i = 1; i < WORDS; i++)
		w[i] = tag * GOLDEN + i * 0xbf58476d1ce4e5b9u;
	w[0] = tag;
}

void stamped(const char *what, const unsigned char *page, uint64_t tag)
{
	const uint64_t *w = (const uint64_t *)page;
	if (w[0] != tag)
		fail("%s at %p is of write %#lx, want %#lx", what, page, w[0], tag);
	for (size_t i = 1; i < WORDS; i++)
		if (w[i] != tag * GOLDEN + i * 0xbf58476d1ce4e5b9u)
			fail("%s at %p of write %#lx is torn at word %zu: %#lx", what, page, tag, i, w[i]);
}

void zeroed(const char *what, const unsigned char *page)
{
	const uint64_t *w = (const uint64_t *)page;
	for (size_t i = 0; i < WORDS; i++)
		if (w[i] != 0)
			fail("%s at %p has %#lx at word %zu, want zeros", what, page, w[i], i);
}

void hand_make(struct hand *h, uint64_t seed)
{
	h->rnd = (seed + 1) * GOLDEN;
	h->bounce = mmap(NULL, RUN * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (h->bounce == MAP_FAILED)
		fail("mmap: %s", strerror(errno));
	must("pipe", pipe(h->pipe));
}

void hand_end(struct hand *h)
{
	must("munmap", munmap(h->bounce, RUN * PAGE));
	close(h->pipe[0]);
	close(h->pipe[1]);
}

uint64_t dice(struct hand *h)
{
	h->rnd ^= h->rnd << 13, h->rnd ^= h->rnd >> 7, h->rnd ^= h->rnd << 17;
	return h->rnd;
}

bool stopped(const struct region *r)
{
	return __atomic_load_n(&r->book->stop, __ATOMIC_SEQ_CST);
}

static void check_page(const struct region *r, size_t p)
{
	const struct note *n = &r->book->note[p];
	const uint64_t *is = (const uint64_t *)(r->mem + p * PAGE);
	if (n->seq > r->book->seq)
		fail("page %zu: write %lu is newer than the newest, %lu", p, n->seq, r->book->seq);
	if (n->tag == TAG_ZERO)
		zeroed("page that was given back", r->mem + p * PAGE);
	else if (!(n->tag & TAG_FILE) && *is < n->tag)
		fail("page %zu is old: of write %lu, want %lu of %lu", p, *is, n->tag, r->book->seq);
	else if (!(n->tag & TAG_FILE) && !(*is & TAG_FILE) && *is > n->tag)
		fail("page %zu is new: of write %lu, want %lu of %lu", p, *is, n->tag, r->book->seq);
	else
		stamped("page", r->mem + p * PAGE, n->tag);
}

void check_own(const struct region *r)
{
	for (size_t p = r->from; p < r->to; p++)
		check_page(r, p);
}

void check_log(const struct region *r)
{
	const struct book *b = r->book;
	uint64_t newest = 0;
	for (size_t p = 0; p < r->pages; p++)
		if (b->note[p].seq > newest)
			newest = b->note[p].seq;
	eq("newest write of all pages", newest, b->seq);
	for (uint64_t s = b->seq; s > 0 && s + LOG > b->seq; s--) {
		const struct line *l = &b->log[s % LOG];
		eq("line of the log", l->seq, s);
		if (b->note[l->page].seq < s)
			fail("page %lu knows nothing of write %lu", l->page, s);
	}
}

uint64_t count(struct book *b, size_t p)
{
	uint64_t seq = ++b->seq;
	struct line *l = &b->log[seq % LOG];
	eq("line of the log that is to be reused", l->seq, seq > LOG ? seq - LOG : 0);
	*l = (struct line){ seq, p };
	return seq;
}

// whole repeats what a system call does until n bytes are done.
static void whole(const char *what, ssize_t (*call)(int, void *, size_t), int fd, void *p, size_t n)
{
	for (size_t done = 0; done < n;)
		done += must(what, call(fd, (char *)p + done, n - done));
}

static ssize_t put_bytes(int fd, void *p, size_t n) { return write(fd, p, n); }

static void put(struct region *r, struct hand *h, enum way way, size_t p, uint64_t tag)
{
	unsigned char *page = r->mem + p * PAGE;
	if (way == STORE) {
		stamp(page, tag);
		return;
	}
	if (way == ALIAS) {
		stamp(r->alias + p * PAGE, tag);
		return;
	}
	stamp(h->bounce, tag);
	struct iovec from = { h->bounce, PAGE }, to = { page, PAGE };
	switch (way) {
	case PWRITE: eq("pwrite", pwrite(r->fd, h->bounce, PAGE, p * PAGE), PAGE); break;
	case VMWRITE: eq("process_vm_writev", process_vm_writev(getpid(), &from, 1, &to, 1, 0), PAGE); break;
	case READ:
		whole("write to a pipe", put_bytes, h->pipe[1], h->bounce, PAGE);
		whole("read from a pipe", read, h->pipe[0], page, PAGE);
		break;
	default: fail("way %d: no such way", way);
	}
}

// give_back drops a page, which reads as zeros from then on.
static void give_back(struct region *r, size_t p)
{
	if (r->fd >= 0)
		must("fallocate", fallocate(r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, p * PAGE, PAGE));
	else
		must("madvise", madvise(r->mem + p * PAGE, PAGE, MADV_DONTNEED));
}

// load_run lets the disk write to a run of pages. The kernel pins them for that,
// and no write fault tells of it.
static void load_run(struct region *r, struct hand *h, size_t p, uint64_t seq)
{
	size_t at = dice(h) % (FILE_PAGES / RUN) * RUN;
	eq("direct read", pread(r->direct, r->mem + p * PAGE, RUN * PAGE, at * PAGE), RUN * PAGE);
	for (size_t i = 0; i < RUN; i++)
		r->book->note[p + i] = (struct note){ seq, TAG_FILE | (at + i) };
}

static size_t pick(const struct region *r, struct hand *h)
{
	size_t n = r->to - r->from;
	if (r->hot && dice(h) % 100 < 98)
		n = n * r->hot / 100;
	return r->from + (dice(h) >> 8) % n;
}

void write_once(struct region *r, struct hand *h)
{
	struct book *b = r->book;
	enum way way = r->way == MIX ? dice(h) % READ : r->way;
	size_t p = pick(r, h), n = 1;
	if (way == DIRECT)
		p = p / RUN * RUN, n = RUN;
	pthread_mutex_lock(&b->lock);
	for (size_t i = 0; i < n; i++)
		check_page(r, p + i);
	uint64_t seq = count(b, p);
	if (way == DIRECT) {
		load_run(r, h, p, seq);
	} else if (r->drop && dice(h) % 4 == 0) {
		give_back(r, p);
		b->note[p] = (struct note){ seq, TAG_ZERO };
	} else {
		put(r, h, way, p, seq);
		b->note[p] = (struct note){ seq, seq };
	}
	pthread_mutex_unlock(&b->lock);
}

static int at_work;

static void *writer(void *arg)
{
	struct region *r = arg;
	struct hand h;
	hand_make(&h, now());
	__atomic_add_fetch(&at_work, 1, __ATOMIC_SEQ_CST);
	struct timespec nap = { .tv_nsec = 1000000 };
	while (!stopped(r)) {
		for (long i = 0; i < (r->pace ? r->pace / 1000 : 64); i++)
			write_once(r, &h);
		if (r->pace)
			nanosleep(&nap, NULL);
	}
	hand_end(&h);
	return NULL;
}

static void *map(size_t n, int flags, int fd)
{
	void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, flags, fd, 0);
	if (p == MAP_FAILED)
		fail("mmap %zu bytes flags %#x: %s", n, flags, strerror(errno));
	return p;
}

static void direct_make(struct region *r)
{
	unsigned char *page = map(PAGE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	r->direct = must("direct file", open("/ctl/direct", O_RDWR | O_CREAT | O_DIRECT, 0666));
	for (size_t i = 0; i < FILE_PAGES; i++) {
		stamp(page, TAG_FILE | i);
		eq("direct write", pwrite(r->direct, page, PAGE, i * PAGE), PAGE);
	}
	must("munmap", munmap(page, PAGE));
}

static void book_make(struct region *r)
{
	pthread_mutexattr_t a;
	int flags = r->shared ? MAP_SHARED : MAP_PRIVATE;
	r->book = map(sizeof *r->book + r->pages * sizeof(struct note), flags | MAP_ANONYMOUS, -1);
	pthread_mutexattr_init(&a);
	pthread_mutexattr_setpshared(&a, PTHREAD_PROCESS_SHARED);
	pthread_mutex_init(&r->book->lock, &a);
}

// settings are the arguments, as name=value.
struct settings { long mib, threads, procs, pace, hot, thp, drop; const char *mem, *way, *churn; };

static void region_make(struct region *r, const struct settings *s)
{
	static const char *const ways[] = { "store", "alias", "pwrite", "read", "direct", "vmwrite", "mix" };
	bool memfd = strcmp(s->mem, "memfd") == 0, shm = strcmp(s->mem, "shm") == 0;
	*r = (struct region){ .pages = s->mib << 8, .fd = -1, .direct = -1, .drop = s->drop, .pace = s->pace, .hot = s->hot };
	while (strcmp(ways[r->way], s->way) != 0)
		if (++r->way > MIX)
			fail("no way %s", s->way);
	r->to = r->pages;
	r->shared = memfd || shm || s->procs > 1;
	if (memfd) {
		r->fd = must("memfd", memfd_create("pages", 0));
		must("ftruncate", ftruncate(r->fd, r->pages * PAGE));
		r->alias = map(r->pages * PAGE, MAP_SHARED, r->fd);
	}
	r->mem = map(r->pages * PAGE, memfd ? MAP_SHARED : MAP_ANONYMOUS | (shm ? MAP_SHARED : MAP_PRIVATE), r->fd);
	int huge = s->thp ? MADV_HUGEPAGE : MADV_NOHUGEPAGE;
	must("madvise", madvise(r->mem, r->pages * PAGE, huge) == 0 || errno == EINVAL ? 0 : -1); // a kernel without
	book_make(r);
	if (r->way == DIRECT)
		direct_make(r);
}

// fill gives every page of this process its first contents.
static void fill(struct region *r)
{
	for (size_t p = r->from; p < r->to; p++) {
		pthread_mutex_lock(&r->book->lock);
		uint64_t seq = count(r->book, p);
		stamp(r->mem + p * PAGE, seq);
		r->book->note[p] = (struct note){ seq, seq };
		pthread_mutex_unlock(&r->book->lock);
	}
}

static pthread_t crew[65];

static int begin(struct region *r, const struct settings *s)
{
	int n = 0;
	for (; n < s->threads && n < 64; n++)
		eq("pthread_create", pthread_create(&crew[n], NULL, writer, r), 0);
	while (__atomic_load_n(&at_work, __ATOMIC_SEQ_CST) < n)
		usleep(1000);
	if (s->churn)
		eq("pthread_create", pthread_create(&crew[n++], NULL, churn(s->churn), r), 0);
	return n;
}

static void finish(struct region *r, int n)
{
	for (int i = 0; i < n; i++)
		eq("pthread_join", pthread_join(crew[i], NULL), 0);
	pthread_mutex_lock(&r->book->lock); // other processes may not have ended yet
	check_own(r);
	pthread_mutex_unlock(&r->book->lock);
}

// other is a process that writes to its own share of the pages, or to all of
// them if they are shared memory.
static void other(struct region *r, const struct settings *s, struct meeting *m)
{
	if (r->fd < 0 && strcmp(s->mem, "shm") != 0)
		fill(r);
	int n = begin(r, s);
	meeting_arrive(m);
	struct timespec nap = { .tv_nsec = 5000000 };
	while (!stopped(r))
		nanosleep(&nap, NULL);
	finish(r, n);
	_exit(0);
}

// others starts the other processes. Private pages are divided among all.
static void others(struct region *r, const struct settings *s, pid_t *pids)
{
	struct meeting m;
	bool divided = r->fd < 0 && strcmp(s->mem, "shm") != 0;
	size_t share = r->pages / s->procs;
	meeting_make(&m);
	for (long i = 1; i < s->procs; i++) {
		if (divided)
			r->from = i * share, r->to = i == s->procs - 1 ? r->pages : (i + 1) * share;
		pids[i] = must("fork", fork());
		if (pids[i] == 0)
			other(r, s, &m);
	}
	if (divided)
		r->from = 0, r->to = s->procs > 1 ? share : r->pages;
	meeting_wait(&m, s->procs - 1);
}

// where tells the test where the newest number and the pages are, for it to look
// at and to damage.
static void where(const struct region *r)
{
	char text[128];
	int n = snprintf(text, sizeof text, "%lu %lu %zu\n", (long)&r->book->seq, (long)r->mem, r->pages);
	int fd = must("where", open("/ctl/where", O_WRONLY | O_CREAT | O_TRUNC, 0666));
	eq("where", write(fd, text, n), n);
	close(fd);
}

static void snapshot(char **argv)
{
	struct settings s = { .mib = 256, .threads = 2, .procs = 1, .mem = "private", .way = "store" };
	static struct region r;
	static pid_t pids[256];
	const struct setting known[] = {
		{ "mib", &s.mib, NULL }, { "threads", &s.threads, NULL }, { "procs", &s.procs, NULL },
		{ "pace", &s.pace, NULL }, { "hot", &s.hot, NULL }, { "thp", &s.thp, NULL }, { "drop", &s.drop, NULL },
		{ "mem", NULL, &s.mem }, { "way", NULL, &s.way }, { "churn", NULL, &s.churn }, { NULL, NULL, NULL },
	};
	settle(argv + 2, known);
	if (s.procs < 1 || s.procs > 256 || s.mib < 1)
		fail("%ld processes, %ld MiB: out of range", s.procs, s.mib);
	region_make(&r, &s);
	if (r.fd >= 0 || strcmp(s.mem, "shm") == 0)
		fill(&r);
	others(&r, &s, pids);
	if (r.fd < 0 && strcmp(s.mem, "shm") != 0)
		fill(&r);
	int n = begin(&r, &s);
	where(&r);
	ready();
	wait_go();
	__atomic_store_n(&r.book->stop, 1, __ATOMIC_SEQ_CST);
	finish(&r, n);
	for (long i = 1; i < s.procs; i++)
		reap(pids[i]);
	check_own(&r); // again: of shared memory, others may have written last
	check_log(&r);
}

// spin is what the churn by exec executes: a process of some memory, which ends.
static void spin(char **argv)
{
	(void)argv;
	enum { PAGES = 256 };
	unsigned char *p = map(PAGES * PAGE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	for (size_t i = 0; i < PAGES; i++)
		stamp(p + i * PAGE, i + 1);
	for (size_t i = 0; i < PAGES; i++)
		stamped("page after exec", p + i * PAGE, i + 1);
	_exit(0);
}

const struct prog snapshot_progs[] = { { "snapshot", snapshot }, { "spin", spin }, { NULL, NULL } };
