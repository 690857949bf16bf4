// A Worker that runs the cases of unstorage with its driver cloudflare-kv-binding. GET /?case=NAME runs one of them and
// answers as worker.mjs does; GET /cases names them. unstorage has to be bundled into it, which run.mjs does.
import { createStorage } from "unstorage";
import driver from "unstorage/drivers/cloudflare-kv-binding";
import { cases } from "../unstorage.mjs";

export default {
  async fetch(request, env) {
    const url = new URL(request.url);
    if (url.pathname === "/cases") return Response.json(cases.map(([name]) => name));
    const store = createStorage({ driver: driver({ binding: env.KV, minTTL: 60 }) });
    const failed = [];
    let passed = 0;
    for (const [name, run] of cases.filter(([name]) => name === url.searchParams.get("case"))) {
      try {
        await run(store);
        passed++;
      } catch (e) {
        failed.push({ name, error: String(e) });
      }
    }
    return Response.json({ passed, failed });
  },
};
