package redirect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Shareable says whether Claim works on this system.
const Shareable = true

// Probes of connections whose peers are silent, in seconds: Go's own defaults.
const (
	keepAliveIdle     = 15
	keepAliveInterval = 15
	keepAliveCount    = 9
)

// listenConfig gives how listeners are opened. Their sockets carry the options
// for keep-alive: connections inherit them, and are spared four system calls
// each. They are plain TCP, not Multipath TCP as is Go's default: the programs
// below do not work with that, and it has nothing to offer for one small answer.
func listenConfig(shared bool) net.ListenConfig {
	lc := net.ListenConfig{KeepAlive: -1}
	lc.SetMultipathTCP(false)
	lc.Control = func(_, _ string, raw syscall.RawConn) error {
		var errs error
		set := func(level, option, value int) {
			errs = errors.Join(errs, raw.Control(func(fd uintptr) {
				errs = errors.Join(errs, os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), level, option, value)))
			}))
		}
		set(unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
		set(unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, keepAliveIdle)
		set(unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, keepAliveInterval)
		set(unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepAliveCount)
		if shared {
			set(unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		}
		return errs
	}
	return lc
}

// Claim is an address that this process is going to serve, and that others of
// the same user may serve at the same time (SO_REUSEPORT). Until Listen it gets
// no connections: a process that takes over is to open the address when it can
// answer, and not before.
type Claim struct {
	fd   int
	addr *net.TCPAddr
}

// NewClaim binds an address. It fails when somebody serves it who does not
// share.
func NewClaim(addr string) (*Claim, error) {
	tcp, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		return nil, err
	}
	c := &Claim{fd: -1}
	if err := c.bind(tcp, unix.SO_REUSEADDR, unix.SO_REUSEPORT); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("claim %s: %w", addr, err)
	}
	return c, nil
}

// bind does for the address what net.Listen does, with options, but for listening.
func (c *Claim) bind(tcp *net.TCPAddr, options ...int) (err error) {
	family, v4 := unix.AF_INET6, tcp.IP.To4()
	if v4 != nil {
		family = unix.AF_INET
	}
	const kind = unix.SOCK_STREAM | unix.SOCK_CLOEXEC
	c.fd, err = unix.Socket(family, kind, 0)
	if v4 == nil && tcp.IP == nil && errors.Is(err, unix.EAFNOSUPPORT) {
		v4, family = net.IPv4zero.To4(), unix.AF_INET
		c.fd, err = unix.Socket(family, kind, 0)
	}
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	for _, option := range options {
		if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, option, 1); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	var sa unix.Sockaddr
	if v4 != nil {
		sa = &unix.SockaddrInet4{Port: tcp.Port, Addr: [4]byte(v4)}
	} else {
		only := 0
		if len(tcp.IP) > 0 && !tcp.IP.IsUnspecified() {
			only = 1
		}
		if err := unix.SetsockoptInt(c.fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
		in6 := &unix.SockaddrInet6{Port: tcp.Port}
		copy(in6.Addr[:], tcp.IP.To16())
		if tcp.Zone != "" {
			ifi, err := net.InterfaceByName(tcp.Zone)
			if err != nil {
				return err
			}
			in6.ZoneId = uint32(ifi.Index)
		}
		sa = in6
	}
	if err := unix.Bind(c.fd, sa); err != nil {
		return os.NewSyscallError("bind", err)
	}
	if sa, err = unix.Getsockname(c.fd); err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	bound := *tcp
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		bound.Port = sa.Port
	case *unix.SockaddrInet6:
		bound.Port = sa.Port
	}
	c.addr = &bound
	return nil
}

// Addr is the address.
func (c *Claim) Addr() net.Addr { return c.addr }

// Served says whether somebody serves the address. An address that is only claimed
// can be bound by who does not share it, and one on which somebody listens cannot.
func (c *Claim) Served() bool {
	probe := Claim{fd: -1}
	err := probe.bind(c.addr, unix.SO_REUSEADDR)
	_ = probe.Close()
	return errors.Is(err, unix.EADDRINUSE)
}

// Listen opens the address. From here on new connections come to this process
// alone: a program that the kernel asks sends them to the second listener of
// the address, which is the newest of two, and where there is none, to the one
// that there is. A claim that was made good needs no Close.
func (c *Claim) Listen() (net.Listener, error) {
	lc := listenConfig(true)
	ln, err := lc.Listen(context.Background(), "tcp", c.addr.String())
	if err != nil {
		return nil, err
	}
	// Without the program connections would come to both, by a hash.
	_ = control(ln.(*net.TCPListener), func(fd int) error {
		return attach(fd, unix.SO_ATTACH_REUSEPORT_CBPF, []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 1}})
	})
	return ln, c.Close()
}

// Close gives the address up.
func (c *Claim) Close() error {
	if c.fd < 0 {
		return nil
	}
	err := unix.Close(c.fd)
	c.fd = -1
	return err
}

// turnAway makes the kernel drop what would begin a new connection to a
// listener, so that nothing is in its queue when it is closed: what is, would
// be reset. A client whose SYN is dropped sends it again after a second.
// Handshakes that are under way go on.
func turnAway(ln *net.TCPListener) {
	// Best effort: without it connections of the last instant may be reset.
	_ = control(ln, turnAwayFrom)
}

// turnAwayFrom is turnAway for a listener's descriptor.
func turnAwayFrom(fd int) error {
	const flags, syn, ack = 13, 0x02, 0x10
	return attach(fd, unix.SO_ATTACH_FILTER, []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: flags},
		{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: syn | ack},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: syn, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
	})
}

// attach gives a listener's socket a program of the classic packet filter.
func attach(fd, option int, program []unix.SockFilter) error {
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, option, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
}

// control calls f with the descriptor of a socket, which it must not keep.
func control(c syscall.Conn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = f(int(fd)) })
	return errors.Join(err, failed)
}
