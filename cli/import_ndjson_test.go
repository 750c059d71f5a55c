package cli

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

func TestPlainLinksTakeTheShortestWay(t *testing.T) {
	got := plainLink(`{"kind":"Link","domain":"go.test","path":"/a","destination":"https://a.test/?x=1","affiliate":"a1","campaign":"c"}`)
	want := &linkv1.Link{Domain: "go.test", Path: "/a", Destination: "https://a.test/?x=1", Affiliate: "a1", Campaign: "c"}
	if !proto.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// FuzzPlainLink proves that the shortest way reads what protojson reads, or
// leaves it alone.
func FuzzPlainLink(f *testing.F) {
	for _, line := range []string{
		`{"kind":"Link","domain":"go.test","path":"/a","destination":"https://a.test/"}`,
		`{"kind":"Link"}`,
		`{"kind":"Link","domain":"go.test","domain":"go.test"}`,
		`{"kind":"Link","domain":""}`,
		`{"kind":"Link","domain":"go.test",}`,
		`{"kind":"Link","domain":"go.test"}}`,
		`{"kind":"Link","path":"/\u0061"}`,
		`{"kind":"Link","path":"/\xff"}`,
		`{"kind":"Link","path":"/\\"}`,
		`{"kind":"Link","path":"/a","status_code":301}`,
		`{"kind":"Link","path":"/a","disabled":true}`,
		`{"kind":"Link","rev":"ision":"1"}`,
		`{"kind":"Domain","host":"go.test"}`,
	} {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		got := plainLink(string(line))
		if got == nil {
			return
		}
		rest := bytes.TrimPrefix(bytes.TrimPrefix(line, []byte(`{"kind":"Link"`)), []byte(","))
		want := new(linkv1.Link)
		if err := protojson.Unmarshal(append([]byte("{"), rest...), want); err != nil {
			t.Fatalf("%q is taken, and protojson says: %v", line, err)
		}
		if !proto.Equal(got, want) {
			t.Fatalf("%q is %v, and protojson says %v", line, got, want)
		}
	})
}
