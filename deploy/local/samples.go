package local

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/affleet/affleet/cli"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
)

//go:embed samples.yaml
var samples []byte

// writeSamples applies the samples to an empty store, as a user would.
func (f *Fleet) writeSamples(ctx context.Context) error {
	empty, err := f.isEmpty(ctx)
	if err != nil || !empty {
		return err
	}
	var out bytes.Buffer
	env := map[string]string{"AFFCTL_SERVER": f.Control, "AFFCTL_NATS": f.NATS, "AFFCTL_USER": "samples", "HOME": f.DataDir}
	code := cli.Main(ctx, []string{"apply", "-f", "-"}, bytes.NewReader(samples), &out, &out, func(key string) string { return env[key] })
	if code != 0 {
		return errors.New(strings.TrimSpace(out.String()))
	}
	return nil
}

// settle waits until so many nodes serve what the store holds now. A node that
// is ready serves what its control plane had, which may be a moment behind.
func (f *Fleet) settle(ctx context.Context, nodes int) error {
	conn, err := f.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	page, err := adminv1.NewLinkServiceClient(conn).List(ctx, &adminv1.ListRequest{PageSize: 1})
	if err != nil {
		return err
	}
	_, err = adminv1.NewFleetServiceClient(conn).WaitForVersion(ctx, &adminv1.WaitForVersionRequest{Version: page.GetVersion(), MinNodes: int32(nodes)})
	return err
}

func (f *Fleet) dial() (*grpc.ClientConn, error) {
	return grpc.NewClient(f.Control, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

func (f *Fleet) isEmpty(ctx context.Context) (bool, error) {
	conn, err := f.dial()
	if err != nil {
		return false, err
	}
	defer conn.Close()
	client := adminv1.NewLinkServiceClient(conn)
	for kind := range adminv1.Kind_name {
		page, err := client.List(ctx, &adminv1.ListRequest{Filter: &adminv1.Filter{Kind: adminv1.Kind(kind)}, PageSize: 1})
		if err != nil {
			return false, fmt.Errorf("list: %w", err)
		}
		if len(page.GetResources()) > 0 {
			return false, nil
		}
	}
	return true, nil
}
