package link

import (
	"errors"
	"fmt"
	"strings"
)

// ErrorKind is what a caller may do about an error.
type ErrorKind uint8

// The kinds, each with the gRPC code of the same name.
const (
	Invalid            ErrorKind = iota + 1 // the input is wrong: change it
	Unimplemented                           // the input is right, and this release has no meaning for it
	NotFound                                // there is no such resource
	AlreadyExists                           // there is one already
	Aborted                                 // somebody else wrote in between: read again
	FailedPrecondition                      // something else must be done first
	OutOfRange                              // the revision or page is gone: start again
	Unavailable                             // try again later
	ResourceExhausted                       // a limit is reached
	Internal                                // a fault of the program
)

// Error is the one domain error of the system: what is wrong, with what, where
// in it, and the cure. The control plane turns it into a gRPC status, affctl
// into lines for people.
type Error struct {
	Kind     ErrorKind
	Resource string // the resource's name, where it is known
	Field    string // the field's proto name, where one is at fault
	Message  string // what is wrong, lower case, for people
	Hint     string // the cure, where it is known
	Etag     string // the current etag, when Kind is Aborted because of one
	Err      error  // the cause, for the log; never shown to users
}

// Error gives the resource, the field and the message.
func (e *Error) Error() string {
	var b strings.Builder
	if e.Resource != "" {
		b.WriteString(e.Resource)
		b.WriteString(": ")
	}
	if e.Field != "" {
		b.WriteString(e.Field)
		b.WriteString(": ")
	}
	b.WriteString(e.Message)
	return b.String()
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Problems flattens err, which may be a join of errors, into its domain errors
// in order. An error that is none becomes one of kind Internal.
func Problems(err error) []*Error {
	if err == nil {
		return nil
	}
	if e, ok := err.(*Error); ok {
		return []*Error{e}
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []*Error
		for _, one := range joined.Unwrap() {
			all = append(all, Problems(one)...)
		}
		return all
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return []*Error{e}
	}
	return []*Error{{Kind: Internal, Message: err.Error(), Err: err}}
}

// invalid makes an Error of kind Invalid for a field.
func invalid(field, hint, format string, args ...any) *Error {
	return &Error{Kind: Invalid, Field: field, Message: fmt.Sprintf(format, args...), Hint: hint}
}
