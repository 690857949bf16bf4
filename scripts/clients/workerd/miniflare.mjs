// Runs worker.mjs in Miniflare, whose remote form of a KV binding every node serves, and prints what it answers:
//   node miniflare.mjs http://127.0.0.1:8580 http://127.0.0.1:8680
// The two URLs are those of two nodes; the package miniflare must be installed where Node looks for it.
import { readFileSync } from "node:fs";
import { Miniflare } from "miniflare";

const [near, far] = process.argv.slice(2);
const namespace = (node, title) => ({
  id: `${node} ${title}`,
  remoteProxyConnectionString: new URL(`/v1/miniflare/${encodeURIComponent(title)}`, node),
});
const mf = new Miniflare({
  modules: [{ type: "ESModule", path: "worker.mjs", contents: readFileSync(new URL("worker.mjs", import.meta.url), "utf8") }],
  compatibilityDate: "2026-04-01",
  kvNamespaces: {
    KV: namespace(near, "workerd-client"),
    FAR: namespace(far, "workerd-client"),
    NONE: namespace(near, "no such namespace"),
    BOUNDED: namespace(far, "workerd-client"), // Miniflare injects no headers, so this one is not bounded
  },
});
const answer = await mf.dispatchFetch("http://localhost/");
console.log(await answer.text());
await mf.dispose();
