//go:build !linux

package redirect

import (
	"errors"
	"net"
)

// Shareable says whether Claim works on this system.
const Shareable = false

func listenConfig(bool) net.ListenConfig { return net.ListenConfig{} }

// Claim is an address that several processes may serve. There is none here.
type Claim struct{}

// NewClaim says that addresses cannot be shared.
func NewClaim(string) (*Claim, error) {
	return nil, errors.New("an address can be shared on Linux only")
}

// Addr is nobody's.
func (*Claim) Addr() net.Addr { return nil }

// Served is never called.
func (*Claim) Served() bool { return false }

// Listen is never called.
func (*Claim) Listen() (net.Listener, error) { return nil, errors.ErrUnsupported }

// Close does nothing.
func (*Claim) Close() error { return nil }

func turnAway(*net.TCPListener) {}
