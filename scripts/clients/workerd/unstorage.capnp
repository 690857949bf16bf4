# A Worker whose binding KV is a namespace of a mesh; run.mjs puts in its name and the address of a node.
using Workerd = import "/workerd/workerd.capnp";

const config :Workerd.Config = (
  services = [
    (name = "main", worker = .client),
    (name = "kv", external = (address = "127.0.0.1:8580", http = (
      style = host, injectRequestHeaders = [(name = "Kv-Namespace", value = "workerd-client")]))),
  ],
  sockets = [(name = "http", address = "127.0.0.1:8791", http = (), service = "main")],
);

const client :Workerd.Worker = (
  modules = [(name = "unstorage.bundle.mjs", esModule = embed "unstorage.bundle.mjs")],
  compatibilityDate = "2026-10-01",
  bindings = [(name = "KV", kvNamespace = "kv")],
);
