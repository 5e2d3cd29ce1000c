//go:build integration

package integration

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stasis-cr/stasis/integration/progs/box"
)

// poolFile says how many huge pages of 2 MiB the host keeps.
const poolFile = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"

// collapseFile says with how many pages missing the kernel makes a huge page of
// small ones by itself.
const collapseFile = "/sys/kernel/mm/transparent_hugepage/khugepaged/max_ptes_none"

// setKernel writes a number to a file of the kernel and returns what it made of it.
func setKernel(path string, n int) (got int, err error) {
	if err := os.WriteFile(path, []byte(strconv.Itoa(n)), 0); err != nil {
		return 0, err
	}
	return kernelSays(path)
}

func kernelSays(path string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// borrowKernel reads a number of the kernel's that the test may change: it is
// written back in the end.
func borrowKernel(t *testing.T, path, what string) (was int) {
	t.Helper()
	was, err := kernelSays(path)
	if errors.Is(err, fs.ErrNotExist) {
		objectsNeed(t, what)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := setKernel(path, was); err != nil {
			t.Error(err)
		}
	})
	return was
}

// TestHugePages takes a program through all modes that has huge pages, and small
// ones where huge ones could be. Meanwhile the kernel must not join them itself.
func TestHugePages(t *testing.T) {
	if os.Geteuid() != 0 {
		objectsNeed(t, "root")
	}
	borrowKernel(t, collapseFile, "a kernel with transparent huge pages")
	if _, err := setKernel(collapseFile, 0); err != nil {
		t.Fatal(err)
	}
	progs := buildObjects(t)
	for _, mode := range objectsModes() {
		if mode.name == "restore-lazy" {
			continue // what is filled later comes as small pages
		}
		t.Run(mode.name, func(t *testing.T) {
			e := box.Engine{Runtime: objectRuntime(t)}
			if mode.name != "plain" {
				e.Save = objectEngine(t)
			}
			runObject(t, mode, e, progs, object{name: "huge", c: true, moves: true}, 0)
		})
	}
}

// TestHugePool saves and restores memory of the host's pool of huge pages, and
// sees a restore refused, before anything is made, when the pool is too small.
func TestHugePool(t *testing.T) {
	if os.Geteuid() != 0 {
		objectsNeed(t, "root")
	}
	const pages = 6 // of the program
	was := borrowKernel(t, poolFile, "a kernel with hugetlbfs")
	fill := func() {
		if got, err := setKernel(poolFile, was+2*pages); err != nil || got < was+2*pages {
			objectsNeed(t, fmt.Sprintf("%d huge pages of 2 MiB, the host has memory for %d (%v)", was+2*pages, got, err))
		}
	}
	fill()
	progs := buildObjects(t)
	e := box.Engine{Runtime: objectRuntime(t), Save: objectEngine(t)}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	p := object{name: "hugetlb", c: true}
	c := box.Config{Args: []string{"/bin/cprogs", p.name}, Caps: box.DefaultCaps()}
	b := startBox(ctx, t, t.TempDir(), fmt.Sprintf("hugepool-%d", os.Getpid()), e, progs, c)
	image := checkpointObject(ctx, t, b, p)
	if _, err := b.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := setKernel(poolFile, 0); err != nil {
		t.Fatal(err)
	}
	const want = "the image needs 6 huge pages of 2 MiB, this host has"
	if err := b.Restore(ctx, image); err == nil || !strings.Contains(err.Error(), want) {
		t.Fatalf("restore without huge pages: %v, want %q", err, want)
	}
	fill()
	restoreObject(ctx, t, b, p, image)
	if err := b.Go(ctx); err != nil {
		t.Error(err)
	}
}
