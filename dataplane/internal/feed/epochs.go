package feed

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
)

// maxEpochs bounds how many epochs are remembered.
const maxEpochs = 64

// epochs are those that the node has left for another one: it does not go back
// to them. Another epoch is an operator's word that what the store holds now is
// right, and it is given once: nodes that are connected to two stores by mistake
// do not go to and fro between them. The zero value remembers none, in memory.
//
// It belongs to the goroutine that applies frames.
type epochs struct {
	path string // empty: in memory only
	log  *slog.Logger
	left []uint64 // the last is the latest
}

// openEpochs reads the file: a hexadecimal number in each line. Other lines are
// passed over.
func openEpochs(path string, log *slog.Logger) *epochs {
	e := &epochs{path: path, log: log}
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Error("epochs that were left are not known", "file", path, "err", err)
	}
	for line := range strings.Lines(string(b)) {
		if epoch, err := strconv.ParseUint(strings.TrimSpace(line), 16, 64); err == nil {
			e.remember(epoch)
		}
	}
	return e
}

func (e *epochs) remember(epoch uint64) {
	e.left = append(e.left, epoch)
	e.left = e.left[max(len(e.left)-maxEpochs, 0):]
}

// has says whether an epoch was left.
func (e *epochs) has(epoch uint64) bool { return slices.Contains(e.left, epoch) }

// add notes that an epoch is left. That is so seldom that it waits for the disk.
func (e *epochs) add(epoch uint64) {
	e.remember(epoch)
	if e.path == "" {
		return
	}
	var b strings.Builder
	for _, epoch := range e.left {
		fmt.Fprintf(&b, "%016x\n", epoch)
	}
	if err := writeFile(e.path, "", func(f *os.File) error {
		_, err := f.WriteString(b.String())
		return err
	}); err != nil {
		e.log.Error("epoch that was left is not written: it may come back after a restart", "file", e.path, "err", err)
	}
}
