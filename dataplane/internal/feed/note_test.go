package feed

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/zeebo/xxh3"
)

func TestNoteThatIsDamagedIsNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), noteName)
	crashed(t, path, maxCrashes)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range whole {
		b := append([]byte{}, whole...)
		b[i] ^= 1
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if n := crashes(path, bad); n != 0 {
			t.Errorf("byte %d is damaged, and there are %d crashes", i, n)
		}
	}
	for _, b := range [][]byte{nil, whole[:10], append(whole, 0)} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if n := crashes(path, bad); n != 0 {
			t.Errorf("%d bytes are taken for a note", len(b))
		}
	}
}

// noteBefore gives a note as the release before writes it.
func noteBefore(crashes int, at time.Time) []byte {
	b := make([]byte, 48)
	copy(b, "AFFTRY01")
	binary.LittleEndian.PutUint64(b[8:], bad.Epoch)
	binary.LittleEndian.PutUint64(b[16:], uint64(bad.Revision))
	binary.LittleEndian.PutUint64(b[24:], uint64(crashes))
	binary.LittleEndian.PutUint64(b[32:], uint64(at.Unix()))
	binary.LittleEndian.PutUint64(b[40:], xxh3.Hash(b[:40]))
	return b
}

func TestNoteOfTheReleaseBeforeIsReadAndItReadsOurs(t *testing.T) {
	path := filepath.Join(t.TempDir(), noteName)
	if err := os.WriteFile(path, noteBefore(maxCrashes, time.Now()), 0o600); err != nil {
		t.Fatal(err)
	}
	w := openTripwire(path, time.Now())
	if wait, over := w.quarantine(); wait != minQuarantine || over != bad || w.arm(bad) == nil || w.armFile(bad) == nil {
		t.Errorf("the node sits out %v over %v", wait, over)
	}
	if err := w.armFile(good); err != nil {
		t.Errorf("the state of the file: %v", err)
	}

	// It knows one mark, and only of what was sent. Longer notes are none to it,
	// and what is left of one once less is noted is no longer than that.
	if info, err := os.Stat(path); err != nil || info.Size() != 2*noteSize {
		t.Fatalf("the note is %v: %v", info, err)
	}
	if err := os.WriteFile(path, noteBefore(2, time.Now()), 0o600); err != nil {
		t.Fatal(err)
	}
	w = openTripwire(path, time.Now())
	if err := w.armFile(good); err != nil {
		t.Fatal(err)
	}
	if err := w.arm(bad); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil || string(b) != string(noteBefore(3, w.armed.at)) {
		t.Errorf("the note is %q: %v", b, err)
	}
	w.close()
	if info, err := os.Stat(path); err != nil || info.Size() != noteSize {
		t.Errorf("wiped, the note is %v: %v", info, err)
	}
}
