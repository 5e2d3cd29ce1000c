package shim

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	bootstrap "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	stock "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/manager"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// maxOptions bounds what is read of a runtime's options, in bytes. containerd
// itself stops at the same size.
const maxOptions = 10 << 20

// manager starts, ends and describes shims the way containerd's runc shim does.
type manager struct{ shim.Shim }

// NewManager returns the shim's command-line actions under a runtime's name.
func NewManager(name string) shim.Shim { return manager{stock.NewShimManager(name)} }

// Start starts the process that serves a bundle's tasks.
func (m manager) Start(ctx context.Context, p *bootstrap.BootstrapParams) (*bootstrap.BootstrapResult, error) {
	var generic runtimeoptions.Options
	found, err := p.FindExtension(&generic)
	if err != nil {
		return nil, err
	}
	if found { // for its ShimCgroup
		opts, err := fromGeneric(&generic)
		if err != nil {
			return nil, err
		}
		if err := p.AddExtension(opts); err != nil {
			return nil, err
		}
	}
	return m.Shim.Start(ctx, p)
}

// Stop cleans up after a shim that is gone. containerd runs it in some bundle's
// directory, beside the one that is meant.
func (m manager) Stop(ctx context.Context, id string) (shim.StopStatus, error) {
	cwd, err := os.Getwd()
	if err != nil {
		return shim.StopStatus{}, err
	}
	host, err := loadHost(filepath.Join(filepath.Dir(cwd), id))
	if err != nil {
		return shim.StopStatus{}, err
	}
	if err := setHost(host); err != nil {
		return shim.StopStatus{}, err
	}
	return m.Shim.Stop(ctx, id)
}

// Info describes the runtime. Its features are the host runtime's.
func (m manager) Info(ctx context.Context, in io.Reader) (*types.RuntimeInfo, error) {
	data, err := io.ReadAll(io.LimitReader(in, maxOptions))
	if err != nil {
		return nil, fmt.Errorf("options: %w", err)
	}
	if len(data) == 0 {
		return m.Shim.Info(ctx, bytes.NewReader(nil))
	}
	given, wrapped, err := infoOptions(data)
	if err != nil {
		return nil, err
	}
	info, err := m.Shim.Info(ctx, bytes.NewReader(wrapped))
	if err == nil {
		info.Options = given
	}
	return info, err
}

// infoOptions returns the options as runc's message, and the same bytes for the
// wrapped manager, which is not to look for the host's runtime itself.
func infoOptions(data []byte) (given *anypb.Any, wrapped []byte, err error) {
	var a anypb.Any
	if err := proto.Unmarshal(data, &a); err != nil {
		return nil, nil, fmt.Errorf("options: %w", err)
	}
	opts, err := DecodeOptions(&a)
	if err != nil {
		return nil, nil, err
	}
	if given, err = typeurl.MarshalAnyToProto(opts); err != nil {
		return nil, nil, err
	}
	if err := setHost(takeHost(opts)); err != nil {
		return nil, nil, err
	}
	inner, err := typeurl.MarshalAnyToProto(opts)
	if err != nil {
		return nil, nil, err
	}
	wrapped, err = proto.Marshal(inner)
	return given, wrapped, err
}
