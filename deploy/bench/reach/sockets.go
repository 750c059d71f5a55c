package reach

import (
	"errors"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// About what a change of a link is on the wire, and its acknowledgement, in
	// bytes.
	frameBytes, answerBytes = 200, 60
	socketRounds            = 50
)

// sockets notes the CPU of a server that does nothing but write to each of n
// sockets and read what comes back, by system calls: nothing that tells nodes of
// a change over TCP takes less. The server has the control plane's core, its
// clients the other one.
func (r *runner) sockets(n int) error {
	was := runtime.GOMAXPROCS(4) // both stay on their threads
	defer runtime.GOMAXPROCS(was)
	servers, clients, err := pairs(n)
	defer closeAll(servers, clients)
	if err != nil {
		return fmt.Errorf("%d sockets: %w", n, err)
	}
	stop := make(chan struct{})
	answering := make(chan error, 1)
	go func() { answering <- onCore(driverCore, func() error { return answer(clients, stop) }) }()
	var used time.Duration
	err = onCore(serverCore, func() (err error) {
		used, err = ask(servers)
		return err
	})
	close(stop)
	if err = errors.Join(err, <-answering); err != nil {
		return fmt.Errorf("%d sockets: %w", n, err)
	}
	r.add(fmt.Sprintf("floor: a write to each of %d sockets, and a read, CPU", n), "µs", 0, float64(used.Microseconds())/float64(n*socketRounds))
	return nil
}

// onCore runs f on one core, in a thread that nothing else has meanwhile. The
// thread lives on: the fleet's processes end with the one that started them.
func onCore(core int, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		var was, set unix.CPUSet
		set.Set(core)
		err := unix.SchedGetaffinity(0, &was)
		if err == nil {
			err = unix.SchedSetaffinity(0, &set)
		}
		if err == nil {
			err = errors.Join(f(), unix.SchedSetaffinity(0, &was))
		}
		done <- err
	}()
	return <-done
}

// pairs makes n connections over loopback: both ends of each.
func pairs(n int) (servers, clients []int, err error) {
	ln, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = unix.Close(ln) }()
	if err := unix.Bind(ln, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return nil, nil, err
	}
	if err := unix.Listen(ln, 16); err != nil {
		return nil, nil, err
	}
	at, err := unix.Getsockname(ln)
	for err == nil && len(servers) < n {
		var client, server int
		if client, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			break
		}
		clients = append(clients, client)
		if err = unix.Connect(client, at); err != nil {
			break
		}
		if server, _, err = unix.Accept4(ln, unix.SOCK_CLOEXEC); err != nil {
			break
		}
		servers = append(servers, server)
		err = errors.Join(
			unix.SetsockoptInt(client, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1), unix.SetNonblock(client, true),
			unix.SetsockoptInt(server, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1), unix.SetNonblock(server, true))
	}
	return servers, clients, err
}

func closeAll(all ...[]int) {
	for _, fds := range all {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}
}

// poll makes an epoll instance that tells of what can be read.
func poll(fds []int) (int, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	for _, fd := range fds {
		if err == nil {
			err = unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
		}
	}
	return ep, err
}

// ready calls f for sockets that can be read, of those that ep tells of within
// 100 ms.
func ready(ep int, events []unix.EpollEvent, f func(fd int) error) error {
	n, err := unix.EpollWait(ep, events, 100)
	if errors.Is(err, unix.EINTR) {
		return nil
	}
	for i := range max(n, 0) {
		if err == nil {
			err = f(int(events[i].Fd))
		}
	}
	return err
}

// ask writes to every socket and reads the answers, again and again: the CPU of
// the thread. What connecting and a first round cost is not in it.
func ask(fds []int) (used time.Duration, err error) {
	ep, err := poll(fds)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(ep) }()
	frame, answer, events := make([]byte, frameBytes), make([]byte, 4096), make([]unix.EpollEvent, 128)
	var begin time.Duration
	for round := range socketRounds + 1 {
		if round == 1 {
			begin = threadCPU()
		}
		for _, fd := range fds {
			if _, err := unix.Write(fd, frame); err != nil {
				return 0, err
			}
		}
		deadline := time.Now().Add(20 * time.Second)
		for left := len(fds) * answerBytes; left > 0; {
			err := ready(ep, events, func(fd int) error {
				n, err := unix.Read(fd, answer)
				left -= n
				return err
			})
			if err == nil && time.Now().After(deadline) {
				err = errors.New("the answers do not come")
			}
			if err != nil {
				return 0, err
			}
		}
	}
	return threadCPU() - begin, nil
}

// answer answers every frame until stop is closed.
func answer(fds []int, stop <-chan struct{}) error {
	ep, err := poll(fds)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(ep) }()
	frame, answer, events := make([]byte, 4096), make([]byte, answerBytes), make([]unix.EpollEvent, 128)
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		if err := ready(ep, events, func(fd int) error {
			if n, err := unix.Read(fd, frame); err != nil || n != frameBytes {
				return fmt.Errorf("%d bytes of a frame: %w", n, err)
			}
			_, err := unix.Write(fd, answer)
			return err
		}); err != nil {
			return err
		}
	}
}

// threadCPU is the user and system time of this thread.
func threadCPU() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_THREAD, &u) // it cannot fail
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
