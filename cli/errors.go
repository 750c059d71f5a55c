package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/affleet/affleet/cli/internal/document"
	"github.com/affleet/affleet/proto/link"
)

// The exit codes: a contract with scripts.
const (
	codeOK          = 0
	codeError       = 1
	codeUsage       = 2
	codePartly      = 3
	codeNotFound    = 4
	codeConflict    = 5
	codeUnavailable = 6
	codeTimeout     = 7
)

// failure is an error with what affctl tells about it.
type failure struct {
	code    int
	message string
	hint    string
}

func (f *failure) Error() string { return f.message }

// usagef makes the error of wrong arguments.
func usagef(hint, format string, args ...any) error {
	return &failure{code: codeUsage, message: fmt.Sprintf(format, args...), hint: hint}
}

// asUsage turns an error of cobra's into one of usage.
func asUsage(err error) error {
	if _, ok := errors.AsType[*failure](err); ok {
		return err
	}
	return usagef("see --help", "%s", err)
}

// silent ends the program with a code when everything has been said.
type silent int

func (s silent) Error() string { return "exit code " + fmt.Sprint(int(s)) }

// unreachable is a call that no server answered.
type unreachable struct {
	what, address, flag, variable string
	err                           error
	perhaps                       bool // it was a write, and the server may have made it
}

// interrupted is said of a command that ended before its time.
const interrupted = "interrupted"

// What is said of a write that may have been made.
const (
	perhapsWritten = "; what was being written may or may not have been"
	lookFirst      = "look whether it is before you repeat it"
)

func (u *unreachable) Error() string {
	text := fmt.Sprintf("no answer from %s at %s: %s", u.what, u.address, u.err)
	if u.perhaps {
		text += perhapsWritten
	}
	return text
}

func (u *unreachable) Unwrap() error { return u.err }

// report prints an error for people and gives the exit code; that of the first
// when err is a join.
func (a *app) report(err error) int {
	if err == nil {
		return codeOK
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		code := codeOK
		for _, one := range joined.Unwrap() {
			if c := a.report(one); code == codeOK {
				code = c
			}
		}
		return code
	}
	if s, ok := errors.AsType[silent](err); ok {
		return int(s)
	}
	t := describe(err)
	for i, line := range t.lines {
		if i == 0 {
			line = a.paint(a.stderr, red, "affctl:") + " " + line
		}
		fmt.Fprintln(a.stderr, line)
	}
	for _, hint := range t.hints {
		fmt.Fprintln(a.stderr, a.paint(a.stderr, cyan, "hint:")+" "+hint)
	}
	return t.code
}

// told is an error as it is printed.
type told struct {
	lines, hints []string
	code         int
}

func describe(err error) told {
	if f, ok := errors.AsType[*failure](err); ok {
		return told{lines: []string{err.Error()}, hints: some(f.hint), code: f.code}
	}
	if p, ok := errors.AsType[*document.Problem](err); ok {
		return told{lines: []string{err.Error()}, hints: some(p.Hint), code: codeError}
	}
	if u, ok := errors.AsType[*unreachable](err); ok {
		t := told{lines: []string{u.Error()}, code: codeUnavailable}
		if u.perhaps {
			t.hints = append(t.hints, lookFirst)
		}
		t.hints = append(t.hints, fmt.Sprintf(`is it running? name another with %s, %s or "affctl context"`, u.flag, u.variable))
		return t
	}
	if e, ok := errors.AsType[*link.Error](err); ok {
		return told{lines: []string{err.Error()}, hints: some(e.Hint), code: exitCode(grpcCodes[e.Kind])}
	}
	if errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled {
		return told{lines: []string{interrupted}, code: codeError}
	}
	if st, ok := status.FromError(err); ok {
		return describeStatus(st)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return told{lines: []string{"the time ran out"}, code: codeTimeout}
	}
	return told{lines: []string{err.Error()}, code: codeError}
}

func some(hint string) []string {
	if hint == "" {
		return nil
	}
	return []string{hint}
}

// grpcCodes are the codes of the kinds of domain errors, for those that
// proto/link gives here without a server.
var grpcCodes = map[link.ErrorKind]codes.Code{
	link.Invalid: codes.InvalidArgument, link.Unimplemented: codes.Unimplemented, link.NotFound: codes.NotFound,
	link.AlreadyExists: codes.AlreadyExists, link.Aborted: codes.Aborted, link.FailedPrecondition: codes.FailedPrecondition,
	link.OutOfRange: codes.OutOfRange, link.Unavailable: codes.Unavailable, link.ResourceExhausted: codes.ResourceExhausted,
	link.Internal: codes.Internal,
}

// exitCode is what scripts see of a gRPC code.
func exitCode(code codes.Code) int {
	switch code {
	case codes.OK:
		return codeOK
	case codes.NotFound:
		return codeNotFound
	case codes.AlreadyExists, codes.Aborted:
		return codeConflict
	case codes.Unavailable:
		return codeUnavailable
	case codes.DeadlineExceeded:
		return codeTimeout
	}
	return codeError
}

// describeStatus says what the control plane said.
func describeStatus(st *status.Status) told {
	t := told{code: exitCode(st.Code())}
	var resource string
	var violations []*errdetails.BadRequest_FieldViolation
	for _, detail := range st.Details() {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			resource = d.GetMetadata()["resource"]
			t.hints = some(d.GetMetadata()["hint"])
		case *errdetails.BadRequest:
			violations = append(violations, d.GetFieldViolations()...)
		}
	}
	head := st.Message()
	if resource != "" {
		head = subject(resource) + ": " + strings.TrimPrefix(head, resource+": ")
	}
	switch len(violations) {
	case 0:
		t.lines = []string{head}
	case 1:
		v := violations[0]
		text := strings.TrimPrefix(v.GetField()+": "+v.GetDescription(), ": ")
		if resource != "" {
			text = subject(resource) + ": " + text
		}
		t.lines = []string{text}
	default:
		t.lines = []string{head}
		if resource != "" {
			t.lines[0] = fmt.Sprintf("%s: %d problems", subject(resource), len(violations))
		}
		for _, v := range violations {
			t.lines = append(t.lines, "  "+strings.TrimPrefix(v.GetField()+": "+v.GetDescription(), ": "))
		}
	}
	switch st.Code() {
	case codes.DeadlineExceeded:
		t.hints = append(t.hints, "give it more time with --timeout")
	case codes.Unimplemented:
		if len(st.Details()) == 0 {
			t.hints = append(t.hints, "is this an affleet control plane, and as new as affctl?")
		}
	}
	return t
}

// subject names a resource for people: link "go.example.com/summer".
func subject(name string) string {
	kind, id, err := link.ParseName(name)
	if err != nil {
		return fmt.Sprintf("%q", name)
	}
	return fmt.Sprintf("%s %q", kind, id)
}
