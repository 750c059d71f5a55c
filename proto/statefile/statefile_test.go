package statefile_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/affleet/affleet/proto/link"
	"github.com/affleet/affleet/proto/statefile"
)

// encode writes entries as a file.
func encode(t testing.TB, epoch uint64, revision int64, entries map[string]string) []byte {
	t.Helper()
	h := statefile.Header{Epoch: epoch, Revision: revision, Entries: int64(len(entries))}
	for key, value := range entries {
		h.Hash = h.Hash.Add(link.HashEntry([]byte(key), []byte(value)))
	}
	var b bytes.Buffer
	w, err := statefile.NewWriter(&b, h)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range slices.Sorted(maps.Keys(entries)) {
		if err := w.Add([]byte(key), []byte(entries[key])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func few() map[string]string {
	return map[string]string{"links/h/a": "one", "links/h/b": "", "domains/h": strings.Repeat("x", 3000)}
}

func TestAFileSaysWhenItsStateWasTheNewest(t *testing.T) {
	at := time.Unix(1_800_000_000, 0)
	for given, want := range map[time.Time]time.Time{
		at:                             at,
		at.Add(999 * time.Millisecond): at,
		{}:                             {},
		time.Unix(-5, 0):               {},
		time.Unix(math.MaxUint32, 0):   time.Unix(math.MaxUint32, 0),
		time.Unix(math.MaxUint32+1, 0): {},
	} {
		var b bytes.Buffer
		w, err := statefile.NewWriter(&b, statefile.Header{Epoch: 7, Revision: 42, Confirmed: given})
		if err == nil {
			err = w.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		h, _, err := statefile.All(&b)
		if err != nil || !h.Confirmed.Equal(want) || h.Epoch != 7 || h.Revision != 42 {
			t.Errorf("of %v it says %v: %v", given, h.Confirmed, err)
		}
	}
}

func TestAFileGivesBackWhatWasWritten(t *testing.T) {
	many := map[string]string{}
	for i := range 30_000 { // several blocks
		many[fmt.Sprintf("links/h/%d", i)] = fmt.Sprintf("%0100d", i)
	}
	for name, entries := range map[string]map[string]string{"nothing": {}, "few": few(), "many": many} {
		h, all, err := statefile.All(bytes.NewReader(encode(t, 7, 42, entries)))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if h.Epoch != 7 || h.Revision != 42 || h.Entries != int64(len(entries)) || len(all) != len(entries) {
			t.Errorf("%s: %+v with %d entries", name, h, len(all))
		}
		for key, value := range entries {
			if got, ok := all[key]; !ok || string(got) != value {
				t.Errorf("%s: %s is %q", name, key, got)
			}
		}
	}
}

func TestADamagedFileIsRefusedWithItsDamage(t *testing.T) {
	good := encode(t, 7, 42, few())
	other := encode(t, 7, 42, map[string]string{"links/h/a": "two", "links/h/b": "", "domains/h": strings.Repeat("x", 3000)})
	for name, c := range map[string]struct {
		file []byte
		says string
	}{
		"empty":              {nil, "ends inside a header"},
		"torn header":        {good[:40], "ends inside a header"},
		"torn block":         {good[:70], "ends inside a block"},
		"no end":             {good[:len(good)-16], "ends inside a block"},
		"more":               {append(slices.Clone(good), 0), "something follows its end"},
		"another":            {[]byte(strings.Repeat("x", 64)), "not a state file"},
		"flipped header":     {flip(good, 30), "header is damaged"},
		"flipped block":      {flip(good, len(good)-20), "a block is damaged"},
		"flipped length":     {flip(good, 64), "a block is damaged"},
		"enormous length":    {flip(good, 67), "a block is damaged"},
		"entries of another": {append(slices.Clone(good[:64]), other[64:]...), "are not the 3 with"},
		"no epoch":           {encode(t, 0, 42, few()), "header makes no sense"},
		"no revision":        {encode(t, 7, 0, few()), "header makes no sense"},
	} {
		if _, _, err := statefile.All(bytes.NewReader(c.file)); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, not %q", name, err, c.says)
		}
	}
	newer := slices.Clone(good)
	newer[8] = 2
	if _, _, err := statefile.All(bytes.NewReader(newer)); !errors.Is(err, statefile.ErrNewer) {
		t.Errorf("a newer format: %v", err)
	}
}

func flip(b []byte, at int) []byte {
	b = slices.Clone(b)
	b[at] ^= 0xff
	return b
}

// FuzzAll reads any bytes as a file: they are refused, or are what they say.
func FuzzAll(f *testing.F) {
	f.Add(encode(f, 7, 42, few()))
	f.Add(encode(f, 7, 42, nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, all, err := statefile.All(bytes.NewReader(data))
		if err != nil {
			return
		}
		var hash link.SetHash
		for key, value := range all {
			hash = hash.Add(link.HashEntry([]byte(key), value))
		}
		if err := h.Check(int64(len(all)), hash); err != nil {
			t.Fatal(err)
		}
	})
}
