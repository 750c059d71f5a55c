package click

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"
	"os"
	"sync/atomic"
	"time"
)

// MinHashKey and MaxHashKey are the least and the most bytes of the secret from
// which the keys of address hashes are made.
const (
	MinHashKey = 32
	MaxHashKey = 4096
)

// ReadHashKey reads that secret from a file: what it holds, without white space at
// both ends. All nodes that read the same give an address the same hash on one day.
func ReadHashKey(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no file", path)
	}
	if info.Mode().Perm()&0o007 != 0 {
		return nil, fmt.Errorf("%s is open to every user of this machine (mode %04o): chmod 600, or 640 for a group", path, info.Mode().Perm())
	}
	secret, err := io.ReadAll(io.LimitReader(f, MaxHashKey+1))
	if err != nil {
		return nil, err
	}
	if len(secret) > MaxHashKey {
		return nil, fmt.Errorf("%s has more than %d bytes", path, MaxHashKey)
	}
	if secret = bytes.TrimSpace(secret); len(secret) < MinHashKey {
		return nil, fmt.Errorf("%s holds %d bytes, and at least %d are needed: openssl rand -hex 32 makes some", path, len(secret), MinHashKey)
	}
	return secret, nil
}

// dayKeys are the keys under which addresses are hashed: another one for each day
// (UTC), and only the newest is kept.
//
// Without a secret they are random and only ever in memory, and each node and each
// start has its own: what was hashed under one cannot be tied to an address, nor to
// another day's hashes, once it is gone. With one, who has the secret can hash every
// address there is, of every day.
type dayKeys struct {
	secret []byte // nil: none
	newest atomic.Pointer[dayKey]
}

type dayKey struct {
	day    int64
	k0, k1 uint64
}

const dayMicros = 24 * 60 * 60 * 1_000_000

// of is the key for a time. Requests that took their times around midnight come in
// any order: a random key of the day before is gone by then, and the new one is
// used.
func (d *dayKeys) of(micros int64) *dayKey {
	day := micros / dayMicros
	for {
		key := d.newest.Load()
		if key != nil && (key.day == day || key.day == day+1 && d.secret == nil) {
			return key
		}
		next := d.make(day)
		if d.newest.CompareAndSwap(key, next) || d.secret != nil {
			return next
		}
	}
}

// make gives a day its key. With a secret that is the beginning of HMAC-SHA-256 of
// "affleet address 2026-12-24".
func (d *dayKeys) make(day int64) *dayKey {
	var b [16]byte
	if d.secret == nil {
		_, _ = rand.Read(b[:]) // never fails
	} else {
		mac := hmac.New(sha256.New, d.secret)
		_, _ = io.WriteString(mac, "affleet address "+time.UnixMicro(day*dayMicros).UTC().Format(time.DateOnly)) // never fails
		copy(b[:], mac.Sum(nil))
	}
	return &dayKey{day, binary.LittleEndian.Uint64(b[:]), binary.LittleEndian.Uint64(b[8:])}
}

// hash is SipHash-2-4 of an address.
func (k *dayKey) hash(address [16]byte) uint64 {
	v0, v1 := k.k0^0x736f6d6570736575, k.k1^0x646f72616e646f6d
	v2, v3 := k.k0^0x6c7967656e657261, k.k1^0x7465646279746573
	round := func() {
		v0 += v1
		v1 = bits.RotateLeft64(v1, 13) ^ v0
		v0 = bits.RotateLeft64(v0, 32)
		v2 += v3
		v3 = bits.RotateLeft64(v3, 16) ^ v2
		v0 += v3
		v3 = bits.RotateLeft64(v3, 21) ^ v0
		v2 += v1
		v1 = bits.RotateLeft64(v1, 17) ^ v2
		v2 = bits.RotateLeft64(v2, 32)
	}
	for _, m := range [3]uint64{
		binary.LittleEndian.Uint64(address[:8]), binary.LittleEndian.Uint64(address[8:]), uint64(len(address)) << 56,
	} {
		v3 ^= m
		round()
		round()
		v0 ^= m
	}
	v2 ^= 0xff
	for range 4 {
		round()
	}
	return v0 ^ v1 ^ v2 ^ v3
}
