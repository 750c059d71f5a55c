package cli

import (
	"bufio"
	"errors"
	"os"
	"path/filepath"
)

// atomicFile is a file that appears under its name only when it is complete.
type atomicFile struct {
	*bufio.Writer
	file *os.File
	path string
	done bool
}

// createAtomic starts a file that commit puts at path.
func createAtomic(path string) (*atomicFile, error) {
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return nil, err
	}
	return &atomicFile{Writer: bufio.NewWriterSize(file, 1<<18), file: file, path: path}, nil
}

// commit makes the file durable and gives it its name.
func (f *atomicFile) commit() error {
	mode := os.FileMode(0o644)
	if info, err := os.Stat(f.path); err == nil {
		mode = info.Mode().Perm()
	}
	err := errors.Join(f.Flush(), f.file.Chmod(mode), f.file.Sync())
	if err = errors.Join(err, f.file.Close()); err != nil {
		return errors.Join(err, os.Remove(f.file.Name()))
	}
	f.done = true
	return os.Rename(f.file.Name(), f.path)
}

// discard removes the file unless it was committed.
func (f *atomicFile) discard() {
	if f.done {
		return
	}
	_ = f.file.Close() // it is thrown away
	_ = os.Remove(f.file.Name())
}
