package cli

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/affleet/affleet/cli/internal/document"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

func importNDJSON(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "ndjson FILE", Short: "Import one JSON document a line",
		Long: `Import one JSON document a line, as export writes them: kind (Link when it is
missing) and the fields of the resource. FILE may be - for stdin.`,
		Example: `  affctl import ndjson links.ndjson --wait
  affctl export | affctl --context staging import ndjson -`,
		Args: argCount(1, 1),
	}
	var f importFlags
	f.addTo(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.importRows(cmd, &f, args[0], readNDJSON)
	}
	return cmd
}

// maxLine bounds one line of NDJSON: far more than a resource may take.
const maxLine = 1 << 20

func readNDJSON(in io.Reader, file string, imp *importer, emit func(row) error) error {
	scanner := bufio.NewScanner(in)
	scanner.Buffer(make([]byte, 64<<10), maxLine)
	at, done := place{file: file}, int64(0)
	for scanner.Scan() {
		at.line++
		line := scanner.Bytes()
		done += int64(len(line)) + 1
		if at.line == 1 {
			line = bytes.TrimPrefix(line, []byte("\xef\xbb\xbf"))
		}
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		r, problems := parseLine(line)
		for i, p := range problems {
			if i > 0 { // one row, several problems
				imp.tell(at, p.Message, p.Hint)
				continue
			}
			if err := imp.failed(at, p.Hint, "%s", p.Message); err != nil {
				return err
			}
		}
		if len(problems) > 0 {
			continue
		}
		if err := emit(row{resource: r, place: at, done: done}); err != nil {
			return err
		}
	}
	if err := scanner.Err(); errors.Is(err, bufio.ErrTooLong) {
		return fmt.Errorf("%s:%d: the line is longer than %d bytes", file, at.line+1, maxLine)
	} else if err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	return nil
}

var linkPrefix = []byte(`{"kind":"Link",`)

// parseLine reads a document. Links as export writes them take the short way;
// what that refuses is read again by the one that explains.
func parseLine(line []byte) (*linkv1.Resource, []*document.Problem) {
	text := line
	if rest, ok := bytes.CutPrefix(line, linkPrefix); ok {
		text = append([]byte{'{'}, rest...)
	}
	l := new(linkv1.Link)
	if err := protojson.Unmarshal(text, l); err == nil {
		r := &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: l}}
		document.ClearReadOnly(r)
		return r, nil
	}
	return document.ParseRow(line)
}
