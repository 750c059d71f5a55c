package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
)

// maxMessage bounds what a server may send at once.
const maxMessage = 64 << 20

// findsOut makes a stream end when the control plane is gone without a word: what a
// watch shows would look like the present. gRPC asks no sooner.
var findsOut = keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 10 * time.Second}

// dial prepares the connection to the control plane; the first call makes it.
func (a *app) dial() (*grpc.ClientConn, error) {
	if a.conn != nil {
		return a.conn, nil
	}
	to, err := a.endpoints()
	if err != nil {
		return nil, err
	}
	if err := checkServer(to.Server); err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient(to.Server,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithKeepaliveParams(findsOut),
		grpc.WithUserAgent("affctl/"+buildVersion()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithInitialWindowSize(1<<20),
		grpc.WithInitialConnWindowSize(4<<20),
		grpc.WithUnaryInterceptor(a.unary),
		grpc.WithStreamInterceptor(a.stream),
	)
	if err != nil {
		return nil, usagef("it looks like host:port", "--server %s: %s", to.Server, err)
	}
	a.conn, a.target = conn, to.Server
	return conn, nil
}

// checkServer refuses what names no port: gRPC would take that of https. It lets the
// sockets and the DNS names pass that gRPC knows of, unix:PATH and dns:///HOST:PORT.
func checkServer(server string) error {
	if strings.HasPrefix(server, "unix:") || strings.HasPrefix(server, "unix-abstract:") {
		return nil
	}
	address := server
	if name, ok := strings.CutPrefix(server, "dns:"); ok {
		address = name[strings.LastIndexByte(name, '/')+1:] // behind //AUTHORITY/
	}
	if _, port, err := net.SplitHostPort(address); err == nil {
		if number, err := net.LookupPort("tcp", port); err == nil && number > 0 {
			return nil
		}
	}
	return usagef("it looks like control.example.com:7070", "--server %s is not HOST:PORT", server)
}

func (a *app) links() (adminv1.LinkServiceClient, error) {
	conn, err := a.dial()
	if err != nil {
		return nil, err
	}
	return adminv1.NewLinkServiceClient(conn), nil
}

func (a *app) fleet() (adminv1.FleetServiceClient, error) {
	conn, err := a.dial()
	if err != nil {
		return nil, err
	}
	return adminv1.NewFleetServiceClient(conn), nil
}

// unary gives each call its time, unless it has one, and the caller's name.
func (a *app) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if _, ok := ctx.Deadline(); ok {
		return a.explainUnavailable(invoke(a.identify(ctx), method, req, reply, cc, opts...))
	}
	limited, cancel := a.limit(ctx)
	defer cancel()
	var told peer.Peer // who took the call, if anybody did
	err := invoke(a.identify(limited), method, req, reply, cc, append(opts, grpc.Peer(&told))...)
	perhaps := told.Addr != nil && writes(req)
	if status.Code(err) == codes.DeadlineExceeded && ctx.Err() == nil {
		late := &failure{
			code: codeTimeout, message: fmt.Sprintf("no answer from the control plane at %s within %s", a.target, &a.timeout),
			hint: "is it well? give it more time with --timeout",
		}
		if perhaps {
			late.message, late.hint = late.message+perhapsWritten, lookFirst+"; give it more time with --timeout"
		}
		return late
	}
	if status.Code(err) == codes.Canceled && perhaps {
		return &failure{code: codeError, message: interrupted + perhapsWritten, hint: lookFirst}
	}
	err = a.explainUnavailable(err)
	if u, ok := errors.AsType[*unreachable](err); ok {
		u.perhaps = perhaps
	}
	return err
}

// writes says whether a call changes what is stored.
func writes(req any) bool {
	switch r := req.(type) {
	case interface{ GetValidateOnly() bool }:
		return !r.GetValidateOnly()
	case *adminv1.ReleaseRequest, *adminv1.NewEpochRequest:
		return true
	}
	return false
}

// limit gives a call its time.
func (a *app) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, time.Duration(a.timeout))
}

// stream gives each stream the caller's name; its time is not bounded.
func (a *app) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, start grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := start(a.identify(ctx), desc, cc, method, opts...)
	if err != nil {
		return nil, a.explainUnavailable(err)
	}
	return &clientStream{ClientStream: s, a: a}, nil
}

// clientStream names the server in errors of a stream.
type clientStream struct {
	grpc.ClientStream
	a *app
}

func (s *clientStream) RecvMsg(m any) error {
	return s.a.explainUnavailable(s.ClientStream.RecvMsg(m))
}

// explainUnavailable tells "no connection" from "the control plane says that
// it cannot": only the latter is answered by a server, with details.
func (a *app) explainUnavailable(err error) error {
	st, ok := status.FromError(err)
	if !ok || err == nil || st.Code() != codes.Unavailable || len(st.Details()) > 0 {
		return err
	}
	text := st.Message()
	if i := strings.LastIndex(text, "connect: "); i >= 0 {
		text = strings.TrimSuffix(text[i+len("connect: "):], `"`)
	} else {
		text = strings.TrimSuffix(strings.TrimPrefix(text, `connection error: desc = "`), `"`)
	}
	return &unreachable{what: "the control plane", address: a.target, flag: "--server", variable: envServer, err: errors.New(text)}
}

// identify says who calls.
func (a *app) identify(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "aff-user", a.user())
}

// user is AFFCTL_USER, or the user at this host, in printable ASCII.
func (a *app) user() string {
	name := a.getenv(envUser)
	if name == "" {
		if name = a.getenv("USER"); name == "" {
			if u, err := user.Current(); err == nil {
				name = u.Username
			}
		}
		if host, err := os.Hostname(); err == nil {
			name += "@" + host
		}
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, name)
}
