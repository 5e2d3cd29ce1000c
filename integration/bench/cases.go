package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/stasis-cr/stasis/integration/harness"
)

// A figure is something that is measured, in the unit that it is shown in.
type figure string

const (
	frozen     figure = "frozen ms"     // how long the container stood still, by the engine's own count
	seen       figure = "seen ms"       // the longest wait that a thread or client in the container saw
	lost       figure = "lost %"        // of the container's work while the checkpoint was made
	checkpoint figure = "checkpoint ms" // checkpoint --leave-running, from start to end
	synced     figure = "synced ms"     // the same, until a disk has the image
	image      figure = "image MiB"     // all files of the image
	again      figure = "again ms"      // the second checkpoint, after some pages have changed
	speedup    figure = "first/again"   // time of the first checkpoint, in those of the second
	spent      figure = "again/changed" // bytes of the second image for each that changed
	first      figure = "first ms"      // from the start of restore to the container's first instruction
	restore    figure = "restore ms"    // restore --detach, from start to end
	memory     figure = "memory MiB"    // the most that the engine had
)

// goal is what a figure should be: ours at most or at least a number, ours at
// most so many times that of another case, the peer's at least so many times ours.
type goal struct {
	figure figure
	most   float64
	least  float64
	times  float64
	than   string // the case that most refers to
}

// test is one case.
type test struct {
	name  string
	args  []string // the container's command
	files []func(context.Context) ([]harness.File, error)
	mib   int // of memory to warm up

	save, back []string // flags of our checkpoint and restore
	alone      bool     // without the peer
	disk       bool     // the image goes to a disk, and is synced
	change     int      // so many bytes change, and a second checkpoint follows
	stay       bool     // nothing is restored

	show  []figure
	goals []goal
}

// scale is how large the cases are.
type scale struct{ mib, big, procs int }

func fullScale() scale  { return scale{1024, 8192, 50} }
func quickScale() scale { return scale{16, 32, 4} }

// engineMemory is in all cases the most that the engine may have.
func engineMemory() goal { return goal{figure: memory, most: 128} }

func cases(z scale) []test {
	all := basics(z)
	for _, procs := range []int{1, z.procs} {
		all = append(append(all, live(z, procs)...), stored(z, procs)...)
		all = append(all, restored(z, procs)...)
	}
	return all
}

// named is the name of a case: what it is about, its size and its processes.
func named(what string, mib, procs int) string {
	size := fmt.Sprintf("%d MiB", mib)
	if mib >= 1024 {
		size = fmt.Sprintf("%d GiB", mib/1024)
	}
	if procs > 1 {
		return fmt.Sprintf("%s %s, %d processes", size, what, procs)
	}
	return size + " " + what
}

// load is the container that holds so much random memory.
func load(mib, procs int, more ...string) []string {
	return append([]string{"/bin/cprogs", "load", fmt.Sprintf("mib=%d", mib), fmt.Sprintf("procs=%d", procs)}, more...)
}

// basics show what costs beside memory.
func basics(z scale) []test {
	show := []figure{frozen, seen, checkpoint, restore, image}
	const loop = "echo > /ctl/ready; until [ -e /ctl/go ]; do sleep 0.1; done; echo ok > /ctl/result"
	all := []test{
		{
			name: "shell", args: []string{"/bin/sh", "-c", loop}, show: []figure{frozen, checkpoint, restore, image},
			goals: []goal{{figure: checkpoint, times: 5}, {figure: restore, times: 2}},
		},
		{name: "64 MiB", args: load(min(64, z.mib), 1), mib: 64, show: show},
	}
	for _, n := range []int{1, 10, 100} {
		threads := load(0, 1, fmt.Sprintf("threads=%d", n))
		all = append(all,
			test{name: fmt.Sprintf("threads: %d", n), args: threads, show: show},
			test{name: fmt.Sprintf("processes: %d", n), args: load(0, n), show: show})
	}
	return all
}

// live are the cases of a container that works while it is checkpointed.
func live(z scale, procs int) []test {
	writer := named("writer", z.mib, procs)
	return []test{
		{
			name: writer, args: load(z.mib, procs, "rate=1000"), mib: 2 * z.mib,
			show: []figure{frozen, seen, checkpoint, image, first, restore, memory},
			goals: []goal{
				{figure: frozen, times: 150},
				{figure: frozen, most: 5},
				{figure: seen, times: 150},
				{figure: checkpoint, times: 1.3},
				{figure: first, times: 2.5},
				{figure: restore, times: 2.5},
				engineMemory(),
			},
		},
		{
			name: named("writer", z.big, procs), args: load(z.big, procs, "rate=1000"), mib: z.big, alone: true, disk: true,
			stay: true, show: []figure{frozen, seen, checkpoint, memory},
			goals: []goal{
				{figure: frozen, most: 2, than: writer}, {figure: seen, most: 2, than: writer}, engineMemory(),
			},
		},
		{
			name: named("busy", z.mib, procs), args: load(z.mib, procs, "busy=1"), mib: 2 * z.mib, stay: true,
			show: []figure{frozen, seen, lost, checkpoint, memory}, goals: []goal{{figure: lost, most: 15}, engineMemory()},
		},
		{
			name: named("stop and copy", z.mib, procs), args: load(z.mib, procs, "rate=1000"), mib: 2 * z.mib, stay: true,
			save: []string{"--no-precopy"}, show: []figure{frozen, checkpoint, memory}, goals: []goal{engineMemory()},
		},
		{
			name: named("again", z.mib, procs), args: load(z.mib, procs), mib: 2 * z.mib, alone: true, stay: true,
			save:   []string{"--pre-dump"}, // it is to be followed what is written afterwards
			change: procs * ((z.mib<<8/procs + 99) / 100) * 4096, show: []figure{checkpoint, again, speedup, spent, memory},
			goals: []goal{{figure: speedup, least: 10}, {figure: spent, most: 1.3}, engineMemory()},
		},
	}
}

// heapProgram fills so many MiB with what Python programs keep, in so many
// processes, and checks afterwards that it still is that.
const heapProgram = `
import hashlib, os, sys, time
mib, procs = int(sys.argv[1]), int(sys.argv[2])
words = "amber bridge copper delta ember forest garden harbor island juniper kernel lantern".split()
def resident():
    with open("/proc/self/statm") as f: return int(f.read().split()[1]) >> 8
def row(i):
    h = i * 2654435761 % 4294967296
    return {"id": i, "name": "%s-%s-%d" % (words[h % 12], words[h >> 8 & 7], i), "score": h / 7.0,
            "tags": [words[h >> 12 & 7], words[h >> 16 & 7]], "seen": (h, i, None),
            "text": "%x %s" % (h, words[h % 11] * 3), "token": hashlib.md5(b"%d" % i).hexdigest(),
            "path": [h * k % 1000003 / 997.0 for k in (1, 2, 3)]}
def exists(path): return os.path.exists("/ctl/" + path)
def put(path, text):
    with open("/ctl/" + path, "w") as f: f.write(text)
kids = []
for k in range(1, procs):
    pid = os.fork()
    if pid == 0: break
    kids.append(pid)
else: k = 0
first = len(kids) == procs - 1
most, rows = resident() + max(mib // procs, 1), []
while resident() < most:
    for i in range(500): rows.append(row(len(rows)))
if first:
    while sum(exists("up%d" % i) for i in range(1, procs)) < procs - 1: time.sleep(0.01)
    put("ready", "ready\n")
else: put("up%d" % k, "")
while not exists("go"): time.sleep(0.01)
ok = all(r == row(i) for i, r in enumerate(rows))
if not first: os._exit(not ok)
for pid in kids: ok = os.waitpid(pid, 0)[1] == 0 and ok
put("result", "ok\n" if ok else "FAIL a row of the heap is not what it was\n")
`

// stored are the cases of data as programs have it, on a disk.
func stored(z scale, procs int) []test {
	zstd := []string{"--compress", "zstd"}
	redis := test{
		name: named("redis", z.mib, procs), args: []string{"/bin/cprogs", "redis", strconv.Itoa(z.mib), strconv.Itoa(procs)},
		files: []func(context.Context) ([]harness.File, error){redisFiles}, mib: 2 * z.mib, disk: true,
		// What is lost of its work is not shown: it does four times as much when its
		// client runs on the same CPU.
		show: []figure{frozen, seen, checkpoint, synced, image, restore, memory},
		goals: []goal{
			{figure: seen, times: 20}, {figure: synced, times: 1 / 1.5}, {figure: image, times: 1 / 0.3}, engineMemory(),
		},
	}
	heap := test{
		name:  named("Python heap", z.mib, procs),
		args:  []string{"/usr/bin/python3", "-c", heapProgram, strconv.Itoa(z.mib), strconv.Itoa(procs)},
		files: []func(context.Context) ([]harness.File, error){harness.Python}, mib: 2 * z.mib, disk: true,
		show:  []figure{frozen, checkpoint, synced, image, restore, memory},
		goals: []goal{{figure: synced, times: 1 / 1.5}, {figure: image, times: 1 / 0.5}, engineMemory()},
	}
	redisZstd, heapZstd := redis, heap
	redisZstd.name, redisZstd.save = named("redis zstd", z.mib, procs), zstd
	redisZstd.goals = []goal{{figure: image, times: 1 / 0.2}, engineMemory()}
	heapZstd.name, heapZstd.save = named("Python heap zstd", z.mib, procs), zstd
	heapZstd.goals = []goal{{figure: image, times: 1 / 0.4}, engineMemory()}
	return []test{redis, redisZstd, heap, heapZstd}
}

func redisFiles(ctx context.Context) ([]harness.File, error) {
	return harness.Program(ctx, "/usr/bin/redis-server")
}

// restored are the cases of how a container comes back. That of the writer is one
// of them.
func restored(z scale, procs int) []test {
	show := []figure{first, restore, memory}
	return []test{
		{
			name: named("lazy", z.mib, procs), args: load(z.mib, procs), mib: 2 * z.mib, back: []string{"--lazy-pages"},
			show: show, goals: []goal{{figure: first, times: 10}, {figure: first, most: 80}, engineMemory()},
		},
		{
			name: named("huge pages", z.mib, procs), args: load(z.mib, procs, "thp=1"), mib: 2 * z.mib,
			show: show, goals: []goal{{figure: first, times: 4}, {figure: restore, times: 4}, engineMemory()},
		},
	}
}
