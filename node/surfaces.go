package node

import (
	"net/http"
	"strings"
	"time"

	"kvmesh/node/api"
	"kvmesh/node/cfbind"
	"kvmesh/node/cfkv"
	"kvmesh/node/cfrest"
	"kvmesh/node/hitpath"
)

// surfaces makes the handler of the public listener, and the counters of what the hit path answers in its place: the
// native surface, and the Cloudflare surfaces, which write within one limit.
func (n *Node) surfaces() (http.Handler, hitpath.Counts) {
	log := n.component("http")
	native := api.New(api.Options{
		Service: n.service, Admin: clusterAdmin{n}, Backups: n.backups, Auth: n.opts.Token, Logger: log, Metrics: n.reg,
	})
	var limit *cfkv.WriteLimit
	if n.opts.StrictLimits {
		limit = cfkv.NewWriteLimit(time.Now)
	}
	var auth api.Authorizer // stays nil without a token: this surface asks for credentials only where there is one
	if n.opts.Token != nil {
		auth = n.opts.Token
	}
	rest := cfrest.New(cfrest.Options{
		Service: n.service, Auth: auth, Account: n.account, Limit: limit, Logger: log, Metrics: n.reg,
	})
	binding := cfbind.New(cfbind.Options{Service: n.service, Auth: n.opts.Token, Writes: limit, Logger: log, Metrics: n.reg})
	counts := hitpath.Counts{
		Native: native.Count(api.RouteGet), NativeHead: native.Count(api.RouteHead),
		REST: rest.Count(cfrest.RouteGet), Binding: binding.Count(cfbind.RouteGet),
	}
	// The binding is known by its header, whatever the path.
	return binding.Before(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, cfrest.Root+"/") {
			rest.ServeHTTP(w, r)
			return
		}
		native.ServeHTTP(w, r)
	})), counts
}

// account is the mesh as an account of Cloudflare's: the same on every node.
func (n *Node) account() cfrest.Account {
	c, _ := n.control.current()
	return cfrest.Account{ID: c.Cluster.String(), Name: "kvmesh"}
}
