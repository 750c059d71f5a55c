//go:build !linux

package redirect

import "syscall"

// polled says that connections are read with net.Conn alone.
const polled = false

func recv(uintptr, []byte) (int, syscall.Errno) { return 0, syscall.ENOTSUP }

func send(uintptr, []byte) (int, syscall.Errno) { return 0, syscall.ENOTSUP }

func unread(uintptr) int { return 0 }
