package contest

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/affleet/affleet/deploy/bench/browser"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// decision is a kind of link that is measured: what its links say, and whether
// nginx can do the same.
type decision struct {
	what, prefix, query string
	both                bool
	limit               float64 // of CPU per redirect to nginx; 0: none
	say                 func(l *linkv1.Link)
}

// decisions are the kinds. Every link has a product of its own as its campaign,
// and so do the destinations of its rules and variants.
var decisions = []decision{
	{what: "plain link", prefix: "/plain", both: true, say: func(*linkv1.Link) {}},
	{what: "three CEL rules on country and device, one with a split; GeoIP and user agent", prefix: "/rules", both: true, limit: 1, say: func(l *linkv1.Link) {
		l.Rules = []*linkv1.Rule{
			{When: `country == "FR"`, Outcome: &linkv1.Rule_Destination{Destination: "https://store.fr/p/{campaign}"}},
			{When: `country in ["AT", "CH", "DE"] && device == "desktop"`, Outcome: &linkv1.Rule_Splits{Splits: &linkv1.SplitSet{Splits: []*linkv1.Split{
				{Name: "a", Weight: 70, Destination: variantA + "{campaign}"}, {Name: "b", Weight: 30, Destination: variantB + "{campaign}"},
			}}}},
			{When: `country == "DE" && device == "mobile"`, Outcome: &linkv1.Rule_Destination{Destination: "https://m.store.de/p/{campaign}"}},
		}
	}},
	{what: "split of two variants", prefix: "/split", both: true, say: func(l *linkv1.Link) {
		l.Splits = []*linkv1.Split{
			{Name: "a", Weight: 70, Destination: variantA + "{campaign}"}, {Name: "b", Weight: 30, Destination: variantB + "{campaign}"},
		}
	}},
	{what: "template with three macros, query `override`", prefix: "/macros", query: "?sub1=news%20letter&ref=y", say: func(l *linkv1.Link) {
		l.Destination += "?click={click_id}&s={sub1}&c={country}&ref=x"
		l.Query = &linkv1.QueryPolicy{Mode: linkv1.QueryMode_QUERY_MODE_OVERRIDE}
	}},
}

// The variants' destinations, without the product.
const (
	variantA = "https://a.store.de/p/"
	variantB = "https://b.store.de/p/"
)

// deciding is the label of nginx with what follows.
const deciding = "nginx, decisions"

// decidingConf does what the links above say. Its variables are worked out when
// they are asked for only.
const decidingConf = `daemon off;
worker_processes 1;
worker_rlimit_nofile 30000;
pcre_jit on;
pid nginx.pid;
error_log error.log notice;
events { worker_connections 20000; }
http {
  map_hash_max_size %d;
  map_hash_bucket_size 256;
  include products.map;
  geo $http_x_forwarded_for $country {
    default "";
    include countries.geo;
  }
  map $http_user_agent $device {
    default desktop;
    "~Mobile|Android|iPhone" mobile;
    "~iPad|Tablet" tablet;
  }
  split_clients "$http_x_forwarded_for$http_user_agent" $variant {
    70%% ` + variantA + `;
    *   ` + variantB + `;
  }
  map "$country $device" $shop {
    default https://store.com/p/;
    "FR desktop" https://store.fr/p/;
    "FR mobile" https://store.fr/p/;
    "FR tablet" https://store.fr/p/;
    "AT desktop" $variant;
    "CH desktop" $variant;
    "DE desktop" $variant;
    "DE mobile" https://m.store.de/p/;
  }
  access_log off;
  keepalive_requests 1000000000;
  server_tokens off;
  client_body_temp_path tmp; proxy_temp_path tmp; fastcgi_temp_path tmp; uwsgi_temp_path tmp; scgi_temp_path tmp;
  server {
    listen %s;
    add_header Cache-Control no-store;
    location /plain/ { return 302 https://store.com/p/$product; }
    location /rules/ { return 302 $shop$product; }
    location /split/ { return 302 $variant$product; }
  }
}
`

func (s *stage) writeDeciding(dir string, c *server) error {
	if err := writeFile(filepath.Join(dir, "products.map"), s.writeProducts); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(dir, "countries.geo"), func(w io.Writer) error {
		for i := range networks {
			if _, err := fmt.Fprintf(w, "%s %s;\n", network(i), countryOf(i)); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "nginx.conf"), fmt.Appendf(nil, decidingConf, 2*len(decisions)*s.cfg.Links, c.addr), 0o644)
}

func (s *stage) writeProducts(w io.Writer) error {
	out := bufio.NewWriter(w)
	fmt.Fprint(out, "map $uri $product {\n  default \"\";\n") // the writer keeps its first error until Flush
	for _, d := range decisions {
		for i := range s.cfg.Links {
			if l := d.link(i); d.both {
				fmt.Fprintf(out, "  %s %s;\n", l.GetPath(), l.GetCampaign())
			}
		}
	}
	fmt.Fprint(out, "}\n")
	return out.Flush()
}

// link gives link i of the kind.
func (d *decision) link(i int) *linkv1.Link {
	l := set.Link(i)
	l.Path = d.path(l.GetPath())
	l.Campaign = strconv.Itoa(100_000_000 + i)
	l.Destination = "https://store.com/p/" + l.GetCampaign()
	d.say(l)
	return l
}

// path is that of a link of the kind.
func (d *decision) path(of string) string { return d.prefix + strings.TrimPrefix(of, "/go") }

// writeDecisions writes the links of all kinds for affctl import.
func (s *stage) writeDecisions(w io.Writer) error { return s.writeKinds(w, decisions) }

func (s *stage) writeKinds(w io.Writer, kinds []decision) error {
	out := bufio.NewWriter(w)
	for _, d := range kinds {
		for i := range s.cfg.Links {
			line, err := protojson.Marshal(d.link(i))
			if err != nil {
				return err
			}
			fmt.Fprintf(out, "{\"kind\":\"Link\",%s\n", line[1:]) // the writer keeps its first error until Flush
		}
	}
	return out.Flush()
}

// networks is how many the GeoIP file and nginx's geo block have.
const networks = 3000

func network(i int) string { return fmt.Sprintf("%d.%d.%d.0/24", 20+i>>16, i>>8&255, i&255) }

var countries = strings.Fields("DE DE DE DE DE DE FR FR FR AT CH US US US US US GB GB ES ES")

func countryOf(i int) string { return countries[i%len(countries)] }

func writeGeoIP(w io.Writer) error {
	tree, err := mmdbwriter.New(mmdbwriter.Options{DatabaseType: "Bench-Country", RecordSize: 24, IncludeReservedNetworks: true})
	if err != nil {
		return err
	}
	for i := range networks {
		_, ipnet, err := net.ParseCIDR(network(i))
		if err != nil {
			return err
		}
		record := mmdbtype.Map{"country": mmdbtype.Map{"iso_code": mmdbtype.String(countryOf(i))}}
		if err := tree.Insert(ipnet, record); err != nil {
			return err
		}
	}
	_, err = tree.WriteTo(w)
	return err
}

// requests are those of a kind: as browsers send them, through a proxy that says
// for whom.
func (d *decision) requests(links int) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		r := rand.New(rand.NewPCG(2, 1))
		for plain := range browser.Requests(set, links, distinct, 1) {
			path, rest, _ := bytes.Cut(plain[len("GET "):], []byte(" HTTP/1.1\r\n"))
			n := r.IntN(networks)
			q := fmt.Appendf(nil, "GET %s%s HTTP/1.1\r\n%s", d.path(string(path)), d.query, rest[:len(rest)-len("\r\n")])
			q = fmt.Appendf(q, "X-Forwarded-For: %d.%d.%d.%d\r\n\r\n", 20+n>>16, n>>8&255, n&255, 1+r.IntN(254))
			if !yield(q) {
				return
			}
		}
	}
}
