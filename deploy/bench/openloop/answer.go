//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

var (
	expected = []byte("HTTP/1.1 302 ")
	length   = []byte("\r\nContent-Length: ")
	headEnd  = []byte("\r\n\r\n")
)

// complete says whether b is a whole answer, which must be a redirect.
func complete(b []byte) (bool, error) {
	head := bytes.Index(b, headEnd)
	if head < 0 {
		if len(b) == cap(b) {
			return false, errors.New("an answer's head is too long")
		}
		return false, nil
	}
	if !bytes.HasPrefix(b, expected) {
		return false, fmt.Errorf("unexpected answer: %q", b)
	}
	_, after, ok := bytes.Cut(b[:head+2], length)
	if !ok {
		return false, fmt.Errorf("an answer without Content-Length: %q", b)
	}
	digits, _, _ := bytes.Cut(after, headEnd[:2])
	body, err := strconv.Atoi(string(digits))
	if err != nil {
		return false, fmt.Errorf("Content-Length: %w", err)
	}
	if size := head + len(headEnd) + body; len(b) > size {
		return false, fmt.Errorf("more than one answer: %q", b)
	} else if len(b) < size {
		return false, nil
	}
	return true, nil
}

// The system calls of the loop go past Go's scheduler: the loop is all there
// is to run, and must not wait for its turn.

// pollFor is epoll_wait with a resolution of nanoseconds. A signal ends it with
// -1 events.
func pollFor(poll int, events []unix.EpollEvent, wait time.Duration) (int, error) {
	timeout := unix.NsecToTimespec(int64(wait))
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT2, uintptr(poll), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)),
		uintptr(unsafe.Pointer(&timeout)), 0, 0)
	switch errno {
	case 0:
		return int(n), nil
	case unix.EINTR:
		return -1, nil
	}
	return 0, os.NewSyscallError("epoll_pwait2", errno)
}

// sleep goes on behind a signal.
func sleep(d time.Duration) {
	left := unix.NsecToTimespec(int64(d))
	for errno := unix.EINTR; errno == unix.EINTR; {
		_, _, errno = unix.RawSyscall6(unix.SYS_CLOCK_NANOSLEEP, unix.CLOCK_MONOTONIC, 0, uintptr(unsafe.Pointer(&left)), uintptr(unsafe.Pointer(&left)), 0, 0)
	}
}

func write(fd int, b []byte) (int, error) {
	n, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// arrival reads from sockets, and knows when what it has read last had come.
type arrival struct {
	head    unix.Msghdr
	vector  unix.Iovec
	control struct {
		unix.Cmsghdr
		at unix.Timespec // of SO_TIMESTAMPNS: of the last byte, by the kernel's wall clock
	}
}

func (a *arrival) read(fd int, b []byte) (int, error) {
	a.control.Cmsghdr = unix.Cmsghdr{}
	a.vector.Base = &b[0]
	a.vector.SetLen(len(b))
	a.head = unix.Msghdr{Iov: &a.vector, Iovlen: 1, Control: (*byte)(unsafe.Pointer(&a.control))}
	a.head.SetControllen(int(unsafe.Sizeof(a.control)))
	n, _, errno := unix.RawSyscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&a.head)), 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// at is when that had come; false where the kernel was not asked.
func (a *arrival) at() (time.Time, bool) {
	said := a.control.Level == unix.SOL_SOCKET && a.control.Type == unix.SCM_TIMESTAMPNS
	return time.Unix(a.control.at.Unix()), said
}
