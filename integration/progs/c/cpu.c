// The processor's state: general registers, the xstate, segment bases, debug
// registers, the vdso.
#include "prog.h"
#include <asm/prctl.h>
#include <cpuid.h>
#include <pthread.h>
#include <stddef.h>
#include <sched.h>
#include <sys/auxv.h>
#include <sys/ptrace.h>
#include <sys/user.h>

// The loops below keep every register filled while they wait: one in user mode,
// one inside read(2). They touch memory only by names, never by registers.
volatile int cpu_go, cpu_at;
uint64_t gpr_want[15], gpr_got[15]; // rax rbx rcx rdx rsi rdi rbp r8 .. r15
uint64_t gpr_sys_got[15];
int gpr_fd;
char gpr_byte;
void gpr_spin(void), gpr_block(void);

#define PUSH "push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
#define POP "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx; ret\n"
#define EACH(op) op(rax, 0) op(rbx, 8) op(rcx, 16) op(rdx, 24) op(rsi, 32) op(rdi, 40) op(rbp, 48) \
	op(r8, 56) op(r9, 64) op(r10, 72) op(r11, 80) op(r12, 88) op(r13, 96) op(r14, 104) op(r15, 112)
#define LOAD(reg, at) "mov gpr_want+" #at "(%rip), %" #reg "\n"
#define STORE(reg, at) "mov %" #reg ", gpr_got+" #at "(%rip)\n"
#define STORE_SYS(reg, at) "mov %" #reg ", gpr_sys_got+" #at "(%rip)\n"
asm(".text\n.globl gpr_spin\ngpr_spin:\n" PUSH EACH(LOAD)
	"movl $1, cpu_at(%rip)\n"
	"1: pause; cmpl $0, cpu_go(%rip); je 1b\n" EACH(STORE) POP
	".globl gpr_block\ngpr_block:\n" PUSH EACH(LOAD)
	"mov gpr_fd(%rip), %edi; lea gpr_byte(%rip), %rsi; mov $1, %edx; xor %eax, %eax\n"
	"syscall\n" EACH(STORE_SYS) POP);

static void *run_spin(void *arg) { gpr_spin(); return arg; }
static void *run_block(void *arg) { gpr_block(); return arg; }

static void gpr(char **argv)
{
	(void)argv;
	pthread_t a, b;
	int fd[2];
	must("pipe", pipe(fd));
	gpr_fd = fd[0];
	for (int i = 0; i < 15; i++)
		gpr_want[i] = 0xdead000000000000u + 0x0101010101010101u * (i + 1);
	pthread_create(&a, NULL, run_spin, NULL);
	pthread_create(&b, NULL, run_block, NULL);
	while (!cpu_at)
		usleep(1000);
	usleep(20000);
	ready();
	wait_go();
	cpu_go = 1;
	must("write", write(fd[1], "x", 1));
	pthread_join(a, NULL);
	pthread_join(b, NULL);
	for (int i = 0; i < 15; i++)
		eq("register of a spinning thread", gpr_got[i], gpr_want[i]);
	eq("answer of read", gpr_sys_got[0], 1);
	static const int kept[] = { 1, 6, 7, 8, 9, 11, 12, 13, 14 };
	for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
		eq("register across read", gpr_sys_got[kept[i]], gpr_want[kept[i]]);
}

#define XSIZE 16384
struct xwait { unsigned char want[XSIZE], got[XSIZE]; } __attribute__((aligned(64)));
static struct xwait xs[2];
int x_fd;
char x_byte;
volatile int x_at;
void x_spin(unsigned char *want, unsigned char *got), x_block(unsigned char *want, unsigned char *got);
asm(".text\n.globl x_spin\nx_spin: push %rbx; mov %rsi, %rbx; mov $0xff, %eax; mov $-1, %edx\n"
	"mov x_mask(%rip), %eax; xor %edx, %edx; xrstor64 (%rdi)\n"
	"movl $1, x_at(%rip)\n"
	"1: pause; cmpl $0, cpu_go(%rip); je 1b\n"
	"mov x_mask(%rip), %eax; xor %edx, %edx; xsave64 (%rbx); pop %rbx; ret\n"
	".globl x_block\nx_block: push %rbx; mov %rsi, %rbx\n"
	"mov x_mask(%rip), %eax; xor %edx, %edx; xrstor64 (%rdi)\n"
	"mov x_fd(%rip), %edi; lea x_byte(%rip), %rsi; mov $1, %edx; xor %eax, %eax; syscall\n"
	"mov x_mask(%rip), %eax; xor %edx, %edx; xsave64 (%rbx); pop %rbx; ret\n");
uint32_t x_mask;

// Components of the standard XSAVE layout that a program may fill at will. PKRU
// (9) is set apart: key 0 must stay open.
static const int comps[] = { 2, 5, 6, 7 };

static void x_fill(unsigned char *a, unsigned seed)
{
	uint32_t eax, size, off, d;
	asm volatile("xsave64 (%0)" :: "r"(a), "a"(x_mask), "d"(0) : "memory");
	a[0] = 0x7f;
	a[1] = 0x0c; // x87: round to zero
	uint32_t mxcsr = 0x7f80; // SSE: round to zero, every exception masked
	memcpy(a + 24, &mxcsr, 4);
	for (int i = 0; i < 8; i++)
		for (int j = 0; j < 10; j++)
			a[32 + 16 * i + j] = j < 8 ? seed + i * 16 + j : (j == 8 ? 0xff : 0x3f);
	a[32 + 7] |= 0x80;
	for (int i = 0; i < 256; i++)
		a[160 + i] = seed * 3 + i;
	a[4] = 0xff; // every x87 register in use
	for (size_t c = 0; c < sizeof comps / sizeof *comps; c++) {
		if (!(x_mask >> comps[c] & 1))
			continue;
		__cpuid_count(0xd, comps[c], size, off, eax, d);
		for (uint32_t i = 0; i < size; i++)
			a[off + i] = seed * 5 + comps[c] * 31 + i;
	}
	if (x_mask >> 9 & 1) {
		uint32_t pkru = 0x55555500 | (seed & 1) << 4;
		__cpuid_count(0xd, 9, size, off, eax, d);
		memcpy(a + off, &pkru, 4);
	}
	uint64_t bv = x_mask;
	memcpy(a + 512, &bv, 8);
	memset(a + 520, 0, 56);
}

static void x_compare(const char *who, const struct xwait *x)
{
	char what[64];
	static const struct { const char *name; int at, n; } legacy[] = {
		{ "x87 control word", 0, 2 }, { "x87 tags", 4, 1 }, { "mxcsr", 24, 4 }, { "sse", 160, 256 },
	};
	for (size_t i = 0; i < sizeof legacy / sizeof *legacy; i++) {
		snprintf(what, sizeof what, "%s of a %s thread", legacy[i].name, who);
		eq(what, memcmp(x->want + legacy[i].at, x->got + legacy[i].at, legacy[i].n), 0);
	}
	for (int i = 0; i < 8; i++)
		eq("x87 register", memcmp(x->want + 32 + 16 * i, x->got + 32 + 16 * i, 10), 0);
	for (int c = 2; c < 10; c++) {
		uint32_t size, off, ecx, edx;
		if (!(x_mask >> c & 1) || c == 8)
			continue;
		__cpuid_count(0xd, c, size, off, ecx, edx);
		snprintf(what, sizeof what, "xstate component %d of a %s thread", c, who);
		eq(what, memcmp(x->want + off, x->got + off, c == 9 ? 4 : size), 0);
	}
}

static void *run_xspin(void *arg) { x_spin(xs[0].want, xs[0].got); return arg; }
static void *run_xblock(void *arg) { x_block(xs[1].want, xs[1].got); return arg; }

static void xstate(char **argv)
{
	(void)argv;
	uint32_t lo, hi;
	int fd[2];
	pthread_t a, b;
	asm volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
	x_mask = lo & 0x2e7; // x87 SSE AVX, AVX-512, PKRU
	must("pipe", pipe(fd));
	x_fd = fd[0];
	x_fill(xs[0].want, 17);
	x_fill(xs[1].want, 90);
	asm volatile("fninit");
	uint32_t mxcsr = 0x1f80;
	asm volatile("ldmxcsr %0" :: "m"(mxcsr));
	pthread_create(&a, NULL, run_xspin, NULL);
	pthread_create(&b, NULL, run_xblock, NULL);
	while (!x_at)
		usleep(1000);
	usleep(20000);
	ready();
	wait_go();
	cpu_go = 1;
	must("write", write(fd[1], "x", 1));
	pthread_join(a, NULL);
	pthread_join(b, NULL);
	x_compare("spinning", &xs[0]);
	x_compare("blocked", &xs[1]);
}

static __thread int tls = 5;
static int tls_arrived;

static void *segment(void *arg)
{
	unsigned long gs, fs, want = 0x123456789000 + (long)arg, fs_was;
	tls = 100 + (long)arg;
	must("set gs", syscall(SYS_arch_prctl, ARCH_SET_GS, want));
	must("get fs", syscall(SYS_arch_prctl, ARCH_GET_FS, &fs_was));
	__atomic_add_fetch(&tls_arrived, 1, __ATOMIC_SEQ_CST);
	while (!cpu_go)
		usleep(1000);
	must("get gs", syscall(SYS_arch_prctl, ARCH_GET_GS, &gs));
	must("get fs", syscall(SYS_arch_prctl, ARCH_GET_FS, &fs));
	eq("gs base", gs, want);
	eq("fs base", fs, fs_was);
	eq("thread-local variable", tls, 100 + (long)arg);
	return NULL;
}

static void segments(char **argv)
{
	(void)argv;
	pthread_t t[3];
	for (long i = 0; i < 3; i++)
		pthread_create(&t[i], NULL, segment, (void *)i);
	while (__atomic_load_n(&tls_arrived, __ATOMIC_SEQ_CST) < 3)
		usleep(1000);
	ready();
	wait_go();
	cpu_go = 1;
	for (int i = 0; i < 3; i++)
		pthread_join(t[i], NULL);
	eq("thread-local variable of main", tls, 5);
}

static volatile long watched;
static volatile int traps;

static void on_trap(int sig)
{
	traps += sig == SIGTRAP;
}

static void watcher(struct meeting *m)
{
	signal(SIGTRAP, on_trap);
	raise(SIGSTOP);
	meeting_arrive(m);
	wait_go();
	watched = 1;
	eq("traps of a watched write", traps, 1);
	_exit(0);
}

// debugregs sets a watchpoint for its child and lets it go: the registers stay.
static void debugregs(char **argv)
{
	(void)argv;
	struct meeting m;
	int status;
	meeting_make(&m);
	pid_t pid = must("fork", fork());
	if (pid == 0)
		watcher(&m);
	must("waitpid", waitpid(pid, &status, WUNTRACED));
	must("seize", ptrace(PTRACE_ATTACH, pid, 0, 0));
	must("waitpid", waitpid(pid, &status, 0));
	must("dr0", ptrace(PTRACE_POKEUSER, pid, offsetof(struct user, u_debugreg[0]), &watched));
	must("dr7", ptrace(PTRACE_POKEUSER, pid, offsetof(struct user, u_debugreg[7]), 0x90001));
	must("detach", ptrace(PTRACE_DETACH, pid, 0, 0));
	must("kill", kill(pid, SIGCONT));
	meeting_wait(&m, 1);
	ready();
	wait_go();
	reap(pid);
}

static void *in_vdso(void *arg)
{
	int64_t was = now();
	cpu_at = 1;
	while (!cpu_go) {
		int64_t is = now();
		if (is < was)
			fail("CLOCK_MONOTONIC went back: %ld, want %ld", is, was);
		was = is;
	}
	return arg;
}

// vdso calls clock_gettime through a pointer that glibc resolved long before.
static void vdso(char **argv)
{
	(void)argv;
	pthread_t t;
	struct timespec vd, sys;
	const unsigned char *base = (void *)getauxval(AT_SYSINFO_EHDR);
	pthread_create(&t, NULL, in_vdso, NULL);
	while (!cpu_at) // until then it blocks all signals
		usleep(1000);
	ready();
	wait_go();
	cpu_go = 1;
	pthread_join(t, NULL);
	eq("magic of the vdso", memcmp(base, "\177ELF", 4), 0);
	static const clockid_t clocks[] = { CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME };
	for (int i = 0; i < 3; i++) {
		must("syscall", syscall(SYS_clock_gettime, clocks[i], &sys));
		must("vdso", clock_gettime(clocks[i], &vd));
		int64_t apart = (vd.tv_sec - sys.tv_sec) * 1000000000LL + vd.tv_nsec - sys.tv_nsec;
		if (apart < 0 || apart > 1000000000)
			fail("vdso clock %d: %ld ns after the kernel's, want under a second", clocks[i], apart);
	}
	unsigned cpu;
	must("getcpu", getcpu(&cpu, NULL));
}

const struct prog cpu_progs[] = {
	{ "gpr", gpr }, { "xstate", xstate }, { "segments", segments }, { "debugregs", debugregs },
	{ "vdso", vdso }, { NULL, NULL },
};
