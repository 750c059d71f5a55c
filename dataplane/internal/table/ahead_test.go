package table

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/affleet/affleet/proto/link"
)

func TestWhatIsAskedForAheadIsWhatIsFound(t *testing.T) {
	b := NewBuilder(0)
	var hosts, paths []string
	for i := range 20_000 {
		host, path := fmt.Sprintf("%c.example", 'a'+i%3), fmt.Sprintf("/Go/%x", i*i)
		if i%3 == 2 {
			host = "*"
		}
		key, value := aLink(t, host, path, "https://shop.example/p", "")
		if err := b.Put([]byte(key), []byte(value)); err != nil {
			t.Fatal(err)
		}
		hosts, paths = append(hosts, host), append(paths, path)
	}
	table := b.Build(Version{1, 2})
	missed := 0
	for i, host := range hosts {
		if host == "*" {
			host = "unknown.example"
		}
		a := table.Ahead([]byte(host), []byte(paths[i]))
		a.Entry()
		var m link.Match
		if table.Lookup([]byte(host), []byte(paths[i]), &m); m.Value == nil {
			t.Fatalf("%s%s is not found", host, paths[i])
		}
		if entry := a.entry(); len(entry) < entryHead || !bytes.HasPrefix(entry[entryHead:], m.Value) {
			missed++ // another with the same tag stands before it, or the index begins anew
		}
	}
	if missed > len(hosts)/100 {
		t.Errorf("%d of %d are missed", missed, len(hosts))
	}
}

func TestAskingAheadForWhatIsNotThereIsHarmless(t *testing.T) {
	table, _ := small(t)
	for _, table := range []*Table{table, NewBuilder(0).Build(Version{1, 2})} {
		for _, host := range []string{"a.example", "c.example", "*", ""} {
			for _, path := range []string{"/none", "/", "", "/x/", "x\x00"} {
				table.Ahead([]byte(host), []byte(path)).Entry()
			}
		}
	}
	Ahead{}.Entry()
}
