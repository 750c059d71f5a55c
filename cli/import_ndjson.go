package cli

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

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

// parseLine reads a document. Links as export writes them take the short way,
// plain ones a shorter; what that refuses is read again by the one that explains.
func parseLine(line []byte) (*linkv1.Resource, []*document.Problem) {
	if l := plainLink(string(line)); l != nil {
		return &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: l}}, nil
	}
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

// plainLink reads a link whose fields are strings of ASCII without escapes, each
// at most once and with no space around: what most lines of an import are. It
// gives nil for everything else. The link's strings are parts of the line.
func plainLink(line string) *linkv1.Link {
	rest, ok := strings.CutPrefix(line, `{"kind":"Link"`)
	if !ok {
		return nil
	}
	l := new(linkv1.Link)
	for strings.HasPrefix(rest, `,"`) {
		var name, value string
		if name, rest, ok = strings.Cut(rest[len(`,"`):], `":"`); !ok {
			return nil
		}
		if value, rest, ok = strings.Cut(rest, `"`); !ok || value == "" || !isPlain(value) {
			return nil
		}
		to := plainField(l, name)
		if to == nil || *to != "" {
			return nil
		}
		*to = value
	}
	if rest != "}" {
		return nil
	}
	return l
}

// plainField is where a field of a link goes that plainLink reads; nil: another.
func plainField(l *linkv1.Link, name string) *string {
	switch name {
	case "domain":
		return &l.Domain
	case "path":
		return &l.Path
	case "destination":
		return &l.Destination
	case "affiliate":
		return &l.Affiliate
	case "campaign":
		return &l.Campaign
	}
	return nil
}

// isPlain says that a string of JSON means itself.
func isPlain(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '\\' {
			return false
		}
	}
	return true
}
