// unstorage's driver cloudflare-kv-http against the REST API of a mesh.
//   node unstorage.mjs URL [TOKEN]
// URL has no path. The namespace is made here.
import { randomUUID } from "node:crypto";
import { createStorage } from "unstorage";
import driver from "unstorage/drivers/cloudflare-kv-http";
import { suite } from "../suite.mjs";
import { cases } from "../unstorage.mjs";

const [apiURL, apiToken = "x".repeat(40)] = process.argv.slice(2);
const accountId = "acc";
const made = await fetch(`${apiURL}/client/v4/accounts/${accountId}/storage/kv/namespaces`, {
  method: "POST",
  headers: { Authorization: `Bearer ${apiToken}`, "Content-Type": "application/json" },
  body: JSON.stringify({ title: `unstorage-${randomUUID()}` }),
});
const { success, errors, result } = await made.json();
if (!success) throw new Error(`no namespace: ${JSON.stringify(errors)}`);

const test = suite("unstorage-http");
const store = createStorage({ driver: driver({ accountId, namespaceId: result.id, apiToken, apiURL, minTTL: 60 }) });
for (const [name, run] of cases) await test(name, () => run(store));
