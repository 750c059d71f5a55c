//go:build !linux

package click

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// allocate leaves it to writing zeros to give a new file its blocks.
func allocate(*os.File, int64) error { return nil }

// populate makes pages present and writable.
func populate(mem []byte) { touch(mem) }

// memoryFile makes a file that is in no folder.
func memoryFile() (*os.File, error) {
	f, err := os.CreateTemp("", "marks")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// errUnclean is what a file system gives where it finds damage.
const errUnclean = unix.EIO
