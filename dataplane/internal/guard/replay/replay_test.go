package replay

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/dataplane/internal/guard"
	"github.com/affleet/affleet/dataplane/internal/guard/policy"
	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
)

// file is a flood of one address, with something in the middle that is no batch.
func file(t testing.TB) (data []byte) {
	t.Helper()
	for i := range 4 {
		b := &clickv1.Batch{Node: "n", Boot: 1, FirstSequence: uint64(1 + 10*i), BaseTimeUs: 1_772_000_000_000_000 + int64(i)*1_000_000, AddressForm: clickv1.AddressForm_ADDRESS_FORM_FULL}
		for j := range 10 {
			b.Clicks = append(b.Clicks, &clickv1.Click{TimeUs: int64(j) * 90_000, Address: []byte{203, 0, 113, 9}})
		}
		m, err := proto.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		data = append(protowire.AppendVarint(data, uint64(len(m))), m...)
		if i == 1 {
			data = append(data, 3, 0xff, 0xff, 0xff)
		}
	}
	return data
}

func TestAFileIsReplayedIntoFindingsDecisionsAndFigures(t *testing.T) {
	rules, err := policy.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	var first string
	for range 2 {
		var out bytes.Buffer
		r, err := New(guard.Settings{}, rules, &out)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(r.Read(bytes.NewReader(file(t))), r.Close(true)); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		var stats struct{ Stats Stats }
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &stats); err != nil {
			t.Fatal(err)
		}
		s := stats.Stats
		if s.Clicks != 40 || s.Batches != 4 || s.Malformed != 1 || s.Findings["flood"] != 1 || s.Decisions["VERDICT_BLOCKED"] != 1 || s.StateBytes == 0 {
			t.Errorf("%+v", s)
		}
		found := strings.Join(lines[:len(lines)-1], "\n")
		if len(lines) != 3 || !strings.Contains(found, `{"finding":{"id":"flood-`) || !strings.Contains(found, `"verdict":"VERDICT_BLOCKED"`) {
			t.Fatalf("%s", found)
		}
		if first == "" {
			first = found
		}
		if found != first {
			t.Errorf("the second time it is\n%s\nnot\n%s", found, first)
		}
	}
}

func TestAFileThatIsNotWholeSaysWhere(t *testing.T) {
	data := file(t)
	for cut, want := range map[int]string{len(data) - 1: "ends after", len(data) / 2: "ends after"} {
		r := NewReader(bytes.NewReader(data[:cut]))
		var err error
		for err == nil {
			_, err = r.Next()
		}
		if errors.Is(err, io.EOF) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "message at byte") {
			t.Errorf("cut at %d: %v", cut, err)
		}
	}
	for _, c := range []struct {
		data []byte
		want string
	}{{[]byte{0x80}, "in its length"}, {[]byte{0xff, 0xff, 0xff, 0xff, 0xff, 1}, "none of a message"}, {[]byte{0xff, 0xff, 0xff, 0x7f}, "at most"}} {
		if _, err := NewReader(bytes.NewReader(c.data)).Next(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%x: %v", c.data, err)
		}
	}
}

func FuzzReader(f *testing.F) {
	f.Add(file(f))
	f.Add([]byte{0xff, 0xff, 0x03, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		r := NewReader(bytes.NewReader(data))
		var got []byte
		for {
			m, err := r.Next()
			if err != nil {
				return
			}
			got = append(protowire.AppendVarint(got, uint64(len(m))), m...)
			if int64(len(got)) <= r.offset && !slices.Equal(got, data[:len(got)]) && !bytes.Contains(data, m) {
				t.Fatalf("%x is not in %x", m, data)
			}
		}
	})
}
