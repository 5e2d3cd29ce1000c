package shim

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/api/events"
	task "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	ctdevents "github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/emptypb"
)

// fakeTasks stands for containerd's service. Calls that the tests don't expect
// meet the nil interface and panic.
type fakeTasks struct {
	task.TTRPCTaskService
	created *task.CreateTaskRequest
	stats   int
	fail    error
}

func (f *fakeTasks) Create(_ context.Context, r *task.CreateTaskRequest) (*task.CreateTaskResponse, error) {
	f.created = r
	return &task.CreateTaskResponse{}, f.fail
}

func (f *fakeTasks) Start(context.Context, *task.StartRequest) (*task.StartResponse, error) {
	return &task.StartResponse{}, f.fail // no such process: its cgroup can't be loaded, which is only logged
}

func (f *fakeTasks) Checkpoint(context.Context, *task.CheckpointTaskRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, f.fail
}

func (f *fakeTasks) Stats(context.Context, *task.StatsRequest) (*task.StatsResponse, error) {
	f.stats++
	return &task.StatsResponse{}, nil
}

func (f *fakeTasks) State(context.Context, *task.StateRequest) (*task.StateResponse, error) {
	return &task.StateResponse{}, nil
}

func (f *fakeTasks) Delete(context.Context, *task.DeleteRequest) (*task.DeleteResponse, error) {
	return &task.DeleteResponse{}, f.fail
}

// fakePublisher hands on what is published.
type fakePublisher chan ctdevents.Event

func (p fakePublisher) Publish(_ context.Context, topic string, e ctdevents.Event) error {
	if topic != "/tasks/checkpointed" {
		return errors.New(topic)
	}
	p <- e
	return nil
}

func (fakePublisher) Close() error { return nil }

func testService(t *testing.T) (*service, *fakeTasks, fakePublisher) {
	t.Helper()
	t.Setenv(hostEnv, "") // put back afterwards
	f, p := &fakeTasks{}, make(fakePublisher, 1)
	return newService(t.Context(), f, p), f, p
}

func TestCreateConvertsOptions(t *testing.T) {
	s, f, _ := testService(t)
	dir := bundle(t, nil)
	in := pack(t, &runtimeoptions.Options{ConfigBody: []byte("BinaryName = \"crun\"\nRoot = \"/r\"\n")})
	if _, err := s.Create(t.Context(), &task.CreateTaskRequest{ID: "c", Bundle: dir, Options: in}); err != nil {
		t.Fatal(err)
	}
	v, err := typeurl.UnmarshalAny(f.created.Options)
	must(t, err)
	if o, ok := v.(*options.Options); !ok || o.BinaryName != "" || o.Root != "/r" {
		t.Errorf("options %T %v", v, v)
	}
	if host, err := loadHost(dir); host != "crun" || err != nil || os.Getenv(hostEnv) != "crun" {
		t.Errorf("host runtime %q, %v, environment %q", host, err, os.Getenv(hostEnv))
	}
	if s.lookup("c") != nil {
		t.Error("a new container counts as restored")
	}
}

// restoreIn creates a container from a checkpoint in the temporary directory.
func restoreIn(t *testing.T, s *service, opts *options.Options) (image string) {
	t.Helper()
	t.Setenv("TMPDIR", t.TempDir())
	image = imageDir(t, os.TempDir(), "ctrd-checkpoint42", "state.img")
	if opts != nil && opts.CriuImagePath != "" {
		opts.CriuImagePath = image
	}
	r := &task.CreateTaskRequest{ID: "c", Bundle: bundle(t, nil), Checkpoint: image}
	if opts != nil {
		r.Options = pack(t, opts)
	}
	if _, err := s.Create(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	return image
}

func exists(t *testing.T, path string) bool {
	t.Helper()
	_, err := os.Lstat(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

func TestStartDropsTemp(t *testing.T) {
	s, _, _ := testService(t)
	image := restoreIn(t, s, nil)
	if _, err := s.Start(t.Context(), &task.StartRequest{ID: "c", ExecID: "e"}); err != nil || !exists(t, image) {
		t.Errorf("an exec's start: image there %t, %v", exists(t, image), err)
	}
	if _, err := s.Start(t.Context(), &task.StartRequest{ID: "c"}); err != nil || exists(t, image) {
		t.Errorf("start: image there %t, %v", exists(t, image), err)
	}
}

func TestStartKeepsCallersImage(t *testing.T) {
	s, _, _ := testService(t)
	image := restoreIn(t, s, &options.Options{CriuImagePath: "set"})
	if _, err := s.Start(t.Context(), &task.StartRequest{ID: "c"}); err != nil || !exists(t, image) {
		t.Errorf("image there %t, %v", exists(t, image), err)
	}
}

func TestDeleteDropsTempOfFailedRestore(t *testing.T) {
	s, f, _ := testService(t)
	image := restoreIn(t, s, nil)
	f.fail = errors.New("no")
	if _, err := s.Start(t.Context(), &task.StartRequest{ID: "c"}); !errors.Is(err, f.fail) || !exists(t, image) {
		t.Errorf("failed start: image there %t, %v", exists(t, image), err)
	}
	f.fail = nil
	if _, err := s.Delete(t.Context(), &task.DeleteRequest{ID: "c"}); err != nil || exists(t, image) {
		t.Errorf("delete: image there %t, %v", exists(t, image), err)
	}
	if s.lookup("c") != nil {
		t.Error("a deleted container is remembered")
	}
}

func TestCreateFailsDropsTemp(t *testing.T) {
	s, f, _ := testService(t)
	f.fail = errors.New("no")
	t.Setenv("TMPDIR", t.TempDir())
	image := imageDir(t, os.TempDir(), "ctrd-checkpoint42", "state.img")
	r := &task.CreateTaskRequest{ID: "c", Bundle: bundle(t, nil), Checkpoint: image}
	if _, err := s.Create(t.Context(), r); !errors.Is(err, f.fail) || exists(t, image) || s.lookup("c") != nil {
		t.Errorf("image there %t, %v", exists(t, image), err)
	}
}

func TestStatsOfRestored(t *testing.T) {
	s, f, _ := testService(t)
	if _, err := s.Stats(t.Context(), &task.StatsRequest{ID: "new"}); err != nil || f.stats != 1 {
		t.Errorf("a new container's figures: %v, asked %d times", err, f.stats)
	}
	restoreIn(t, s, nil)
	if resp, err := s.Stats(t.Context(), &task.StatsRequest{ID: "c"}); err == nil {
		t.Errorf("figures before the start: %v", resp)
	}
	if f.stats != 1 {
		t.Error("a restored container's figures were asked of the wrapped service")
	}
}

func TestCheckpointEvent(t *testing.T) {
	s, f, p := testService(t)
	path := filepath.Join(t.TempDir(), "image")
	if _, err := s.Checkpoint(t.Context(), &task.CheckpointTaskRequest{ID: "c", Path: path}); err != nil {
		t.Fatal(err)
	}
	e, ok := (<-p).(*events.TaskCheckpointed)
	if !ok || e.ContainerID != "c" || e.Checkpoint != path {
		t.Errorf("event %v", e)
	}
	f.fail = errors.New("no")
	if _, err := s.Checkpoint(t.Context(), &task.CheckpointTaskRequest{ID: "c"}); !errors.Is(err, f.fail) {
		t.Error(err)
	}
	if len(p) != 0 {
		t.Error("an event for a checkpoint that failed")
	}
}
