// What run.mjs and miniflare.mjs have in common: the namespace of a run, and asking a Worker for its cases one by one.
import { randomUUID } from "node:crypto";
import { setTimeout as wait } from "node:timers/promises";
import { suite } from "../suite.mjs";

// namespace makes a namespace at the first of the nodes (HOST:PORT) and waits until all of them know it.
export async function namespace(client, nodes) {
  const title = `${client}-${randomUUID()}`;
  const url = (node) => `http://${node}/v1/namespaces/${title}`;
  const made = await fetch(url(nodes[0]), { method: "PUT" });
  if (!made.ok) throw new Error(`no namespace at ${nodes[0]}: ${made.status} ${await made.text()}`);
  await made.body?.cancel();
  for (const node of nodes) {
    for (let i = 0; ; i++) {
      const got = await fetch(url(node));
      await got.body?.cancel();
      if (got.ok) break;
      if (i === 600) throw new Error(`after a minute ${node} does not know the namespace ${title}: ${got.status}`);
      await wait(100);
    }
  }
  return title;
}

// drive runs the cases of the Worker behind get, which takes a path and returns the parsed answer, except those named.
export async function drive(client, get, except = []) {
  const test = suite(client);
  for (const name of await get("/cases")) {
    if (except.includes(name)) continue;
    await test(name, async () => {
      const { passed, failed } = await get(`/?case=${encodeURIComponent(name)}`);
      for (const { error } of failed) throw new Error(error);
      if (passed !== 1) throw new Error(`${passed} cases of this name passed, want 1`);
    });
  }
}
