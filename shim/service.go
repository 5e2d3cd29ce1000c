package shim

import (
	"context"
	"fmt"
	"sync"

	"github.com/containerd/containerd/api/events"
	task "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	stock "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/emptypb"
)

// service is containerd's task service. What isn't overridden is containerd's.
type service struct {
	task.TTRPCTaskService

	ctx       context.Context //nolint:containedctx // of the shim's life; carries the namespace
	publisher shim.Publisher
	oom       *oomEvents
	host      hostRuntime

	mu       sync.Mutex
	restored map[string]*restored // by container
}

// restored is what the wrapped service doesn't keep of a restored container.
type restored struct {
	temp string // directory to remove once it runs, or ""

	mu     sync.Mutex
	cgroup any // nil until it runs
}

// NewService returns the task service that the shim serves. It ends with ctx,
// which must carry containerd's namespace.
func NewService(ctx context.Context, p shim.Publisher, sd shutdown.Service) (shim.TTRPCService, error) {
	inner, err := stock.NewTaskService(ctx, p, sd)
	if err != nil {
		return nil, err
	}
	return newService(ctx, inner, p), nil
}

func newService(ctx context.Context, inner task.TTRPCTaskService, p shim.Publisher) *service {
	return &service{
		TTRPCTaskService: inner,
		ctx:              ctx,
		publisher:        p,
		oom:              &oomEvents{ctx: ctx, publisher: p},
		restored:         map[string]*restored{},
	}
}

// RegisterTTRPC serves s instead of the service that it wraps.
func (s *service) RegisterTTRPC(server *ttrpc.Server) error {
	task.RegisterTTRPCTaskService(server, s)
	return nil
}

// Create makes a container, or with a checkpoint prepares for its restore at
// Start: containerd may yet apply the root filesystem's changes in between.
func (s *service) Create(ctx context.Context, r *task.CreateTaskRequest) (*task.CreateTaskResponse, error) {
	opts, err := s.settle(r)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	if r.Checkpoint == "" {
		if r.Checkpoint, err = restoreFrom(r.Bundle); err != nil {
			return nil, errgrpc.ToGRPC(err)
		}
	}
	resp, err := s.TTRPCTaskService.Create(ctx, r)
	if r.Checkpoint == "" {
		return resp, err
	}
	res := newRestored(r.Checkpoint, opts)
	if err != nil {
		res.dropTemp(ctx) // no Delete follows
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.restored[r.ID] = res
	return resp, nil
}

// settle rewrites the request's options for the wrapped service: always runc's
// message, never another runtime than stasis.
func (s *service) settle(r *task.CreateTaskRequest) (*options.Options, error) {
	opts, err := DecodeOptions(r.Options)
	if err != nil {
		return nil, err
	}
	host := takeHost(opts)
	if err := s.host.choose(host); err != nil {
		return nil, err
	}
	if err := saveHost(r.Bundle, host); err != nil {
		return nil, err
	}
	r.Options, err = typeurl.MarshalAnyToProto(opts)
	return opts, err
}

func newRestored(image string, opts *options.Options) *restored {
	res := &restored{}
	// A directory that the caller named is the caller's, whatever its name.
	if image != opts.CriuImagePath && isTempName(image, tempParents()) {
		res.temp = image
	}
	return res
}

func (s *service) lookup(id string) *restored {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.restored[id]
}

// Start starts a process or restores a container.
func (s *service) Start(ctx context.Context, r *task.StartRequest) (*task.StartResponse, error) {
	resp, err := s.TTRPCTaskService.Start(ctx, r)
	res := s.lookup(r.ID)
	if err != nil || res == nil || r.ExecID != "" {
		return resp, err
	}
	if err := s.watch(r.ID, res, int(resp.Pid)); err != nil {
		// It runs: to fail now would lose a container for want of its figures.
		log.G(ctx).WithError(err).WithField("id", r.ID).Error("cgroup of the restored container")
	}
	res.dropTemp(ctx)
	return resp, nil
}

// watch loads the cgroup of a container that has just been restored.
func (s *service) watch(id string, res *restored, pid int) error {
	cg, err := loadCgroup(pid)
	if err != nil {
		return err
	}
	res.mu.Lock()
	res.cgroup = cg
	res.mu.Unlock()
	if err := prepareCgroup(cg); err != nil {
		log.G(s.ctx).WithError(err).WithField("id", id).Warn("cgroup controllers")
	}
	return s.oom.add(id, cg)
}

func (res *restored) dropTemp(ctx context.Context) {
	res.mu.Lock()
	defer res.mu.Unlock()
	if res.temp == "" {
		return
	}
	if err := removeTemp(res.temp, tempParents()); err != nil {
		log.G(ctx).WithError(err).Warn("temporary checkpoint left behind")
	}
	res.temp = ""
}

// Stats returns a container's figures.
func (s *service) Stats(ctx context.Context, r *task.StatsRequest) (*task.StatsResponse, error) {
	res := s.lookup(r.ID)
	if res == nil {
		return s.TTRPCTaskService.Stats(ctx, r)
	}
	cg, err := s.cgroupOf(ctx, r.ID, res)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	stats, err := statCgroup(cg)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &task.StatsResponse{Stats: typeurl.MarshalProto(stats)}, nil
}

// cgroupOf loads the cgroup if Start could not.
func (s *service) cgroupOf(ctx context.Context, id string, res *restored) (any, error) {
	res.mu.Lock()
	defer res.mu.Unlock()
	if res.cgroup != nil {
		return res.cgroup, nil
	}
	st, err := s.State(ctx, &task.StateRequest{ID: id})
	if err != nil {
		return nil, err
	}
	if st.Pid == 0 {
		return nil, fmt.Errorf("container %s has not started: %w", id, errdefs.ErrNotFound)
	}
	res.cgroup, err = loadCgroup(int(st.Pid))
	return res.cgroup, err
}

// Checkpoint writes a container's image to the directory r.Path. containerd
// has paused the container, and it stays paused.
func (s *service) Checkpoint(ctx context.Context, r *task.CheckpointTaskRequest) (*emptypb.Empty, error) {
	resp, err := s.TTRPCTaskService.Checkpoint(ctx, r)
	if err == nil {
		// The container stands still meanwhile: it must not wait for a subscriber.
		go s.published(&events.TaskCheckpointed{ContainerID: r.ID, Checkpoint: r.Path})
	}
	return resp, err
}

func (s *service) published(e *events.TaskCheckpointed) {
	if err := s.publisher.Publish(s.ctx, runtime.TaskCheckpointedEventTopic, e); err != nil {
		log.G(s.ctx).WithError(err).WithField("id", e.ContainerID).Error("checkpoint event")
	}
}

// Delete removes a process or a container.
func (s *service) Delete(ctx context.Context, r *task.DeleteRequest) (*task.DeleteResponse, error) {
	resp, err := s.TTRPCTaskService.Delete(ctx, r)
	if err != nil || r.ExecID != "" {
		return resp, err
	}
	s.mu.Lock()
	res := s.restored[r.ID]
	delete(s.restored, r.ID)
	s.mu.Unlock()
	if res != nil {
		res.dropTemp(ctx) // of a restore that failed
	}
	return resp, nil
}
