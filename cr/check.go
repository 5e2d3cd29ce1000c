package cr

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/object"
	"github.com/stasis-cr/stasis/cr/procfs"
	"github.com/stasis-cr/stasis/namespaces"
)

// Check lists everything that stands in the way of a checkpoint, without
// stopping anything. The error says that the look itself did not work.
func Check(ctx context.Context, o CheckpointOptions) ([]error, error) {
	c, err := findContainer(ctx, &o)
	if err != nil {
		return nil, err
	}
	if err := awaitFilled(ctx, o.Root, o.ID, logger(o.Log)); err != nil {
		return nil, err
	}
	return survey(ctx, c, &o)
}

// Looks at a running container are glimpses: a task that is about to end has left
// its cgroup but not its namespaces, a pipe has changed hands. What stands in the
// way for good does so at every look.
const (
	surveyLooks = 4
	surveyPause = 3 * time.Millisecond
)

// survey collects every refusal that all of several looks agree on. Where the
// first one finds nothing there is no second.
func survey(ctx context.Context, c *container, o *CheckpointOptions) ([]error, error) {
	agreed, err := look(ctx, c, o)
	for n := 1; n < surveyLooks && len(agreed) > 0 && err == nil; n++ {
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(surveyPause):
		}
		var again []error
		if again, err = look(ctx, c, o); err == nil {
			agreed = both(agreed, again)
		}
	}
	return agreed, err
}

// both keeps the errors of a that b has too.
func both(a, b []error) []error {
	said := map[string]bool{}
	for _, e := range b {
		said[e.Error()] = true
	}
	return slices.DeleteFunc(a, func(e error) bool { return !said[e.Error()] })
}

// look looks once at a container that may be running. A task that ends meanwhile
// is passed over.
func look(ctx context.Context, c *container, o *CheckpointOptions) ([]error, error) {
	pids, err := family(c.initPID)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c.id, err)
	}
	refusals, err := outsiders(c, pids)
	if err != nil {
		return nil, err
	}
	number := map[int]int{}
	var tasks, running []int
	for _, pid := range pids {
		st, err := procfs.ReadStatus(pid)
		if vanished(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		number[pid] = containerPID(&st)
		if st.State == 'Z' { // has left its cgroups and namespaces
			continue
		}
		tids, err := threadsOf(pid)
		if err != nil && !vanished(err) {
			return nil, err
		}
		tasks = append(tasks, tids...)
		if st.VMSize > 0 { // else it has given its memory back already
			running = append(running, pid)
		}
		for _, tid := range tids {
			c.calls.Look(pid, tid)
		}
	}
	maps := readAhead(running)
	refusals = append(refusals, sharers(running, number)...)
	refusals = append(refusals, namespaces.Check(ctx, c.initPID, tasks, c.spec)...)
	objects := newObjects(c, o, noContents{}, func(host int) int { return number[host] }, true)
	for _, pid := range pids {
		if err := surveyProcess(ctx, c, object.ProcRef{HostPID: pid, PID: number[pid]}, objects, maps); err != nil && !vanished(err) {
			refusals = append(refusals, flatten(err)...)
		}
	}
	if _, _, err := objects.Finish(ctx); err != nil {
		refusals = append(refusals, flatten(err)...)
	}
	return refusals, objects.Close()
}

// noContents stores nothing: a survey reads no contents.
type noContents struct{}

func (noContents) Write(context.Context, io.ReaderAt, int64) (uint32, error) { return 1, nil }

func surveyProcess(ctx context.Context, c *container, ref object.ProcRef, objects *object.Capture, maps readMaps) error {
	st, err := procfs.ReadStatus(ref.HostPID)
	if err != nil {
		return err
	}
	if zombie := st.State == 'Z'; zombie {
		if st.Threads > 1 {
			return &errs.Error{PID: ref.PID, Err: fmt.Errorf("its main thread has ended while others run: %w", errs.ErrUnsupported)}
		}
		return nil
	}
	var all []error
	if st.TracerPID != 0 {
		all = append(all, &errs.Error{PID: ref.PID, Err: fmt.Errorf("is traced by process %d: end that first", st.TracerPID)})
	}
	_, _, err = objects.Table(ctx, ref)
	all = append(all, err)
	for _, link := range []string{"cwd", "root", "exe"} {
		_, err := objects.Path(ctx, ref, link)
		all = append(all, err)
	}
	return errors.Join(append(all, surveyMappings(ctx, c, ref, objects, maps))...)
}

// outsiders refuses processes in the container's cgroup that do not descend
// from its init: those that were brought in by exec.
func outsiders(c *container, pids []int) ([]error, error) {
	inside, err := c.cgroup.GetAllPids()
	if err != nil {
		return nil, fmt.Errorf("container %s: processes of its cgroup: %w", c.id, err)
	}
	var refusals []error
	for _, pid := range inside {
		if slices.Contains(pids, pid) {
			continue
		}
		st, err := procfs.ReadStatus(pid)
		if err != nil {
			continue // ended
		}
		if again, err := family(c.initPID); err == nil && slices.Contains(again, pid) {
			continue // born since
		}
		refusals = append(refusals, &errs.Error{
			PID: containerPID(&st), Obj: errs.Name(fmt.Sprintf("(%s)", st.Name)),
			Err: fmt.Errorf("was brought in by exec and has its parent outside: let it end first: %w", errs.ErrUnsupported),
		})
	}
	return refusals, nil
}

// flatten takes joined errors apart.
func flatten(err error) []error {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error }) // only the outermost join is taken apart
	if !ok {
		return []error{err}
	}
	var lines []string
	for _, e := range joined.Unwrap() {
		lines = append(lines, e.Error())
	}
	if strings.Join(lines, "\n") != err.Error() { // an error with two causes, not two errors
		return []error{err}
	}
	var out []error
	for _, e := range joined.Unwrap() {
		out = append(out, flatten(e)...)
	}
	return out
}
