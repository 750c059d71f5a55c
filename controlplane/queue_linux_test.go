package controlplane

import (
	"net"
	"runtime"
	"testing"
)

func TestQueueLetsWhatHasComeOverTheNetworkGoFirst(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	queue, end := newQueue()
	defer end()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	near, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan int, 1) // bytes so far
	go func() {
		defer close(read)
		buf := make([]byte, 16)
		for total := 0; ; {
			n, err := far.Read(buf)
			if err != nil {
				return
			}
			total += n
			read <- total
		}
	}()
	defer func() {
		_ = far.Close()
		<-read
	}()
	queue() // the goroutine waits for input then
	const rounds = 200
	late := 0
	for range rounds {
		if _, err := near.Write([]byte{0}); err != nil {
			t.Fatal(err)
		}
		queue()
		select {
		case <-read:
		default:
			late++
			<-read
		}
	}
	// The runtime may take the goroutine off its only P in between.
	if late > rounds/10 {
		t.Errorf("%d of %d bytes were there, and not read", late, rounds)
	}
}
