// Addresses in the form that is stored: without fragments, secrets, and parameters that only say where a visitor comes from.
// The cases in sdk/tests/wire/addresses.json say what the result must be, in every language.

import { cut } from "./event.js";
import type { CheckedOptions } from "./options.js";

/** Parameters that do not name a page: of campaigns, of clicks on advertisements, and secrets. */
const FOREIGN =
  /^(utm_\w*|ref|source|\w*cl(ick_?|k)?id|[gw]braid|gclsrc|gad_\w*|_g[al]|_hs\w*|mc_[ce]id|mkt_tok|igsh(id)?|li_fat_id|srsltid|epik|\w*(token|secret)|passw\w*|jwt)$/i;
/** Those that become properties of the view. */
const CAMPAIGN = /^utm_(source|medium|campaign|term|content)$/i;

/**
 * Returns an address in the form that is stored, or "" for one that is excluded. Puts what it says about a campaign into
 * `campaign`. Throws if it is not an address.
 */
export type Clean = (address: string, campaign?: Record<string, string>) => string;

export function createClean({ hash, query, exclude }: Pick<CheckedOptions, "hash" | "query" | "exclude">): Clean {
  const excluded = exclude.map((pattern) => {
    // Parsed, so that it is escaped as addresses are.
    const { pathname, hash } = new URL(pattern, "http://page");
    const source = (pathname + hash).replace(/[^\w/]/g, (found) => (found === "*" ? ".*" : `\\${found}`));
    return RegExp(`^${source}/?([?#].*)?$`);
  });

  return (address, campaign = {}) => {
    const url = new URL(address, location.href);
    // Parameters keep their spelling, whatever their names are when decoded.
    const filter = (parameters: string) =>
      parameters
        .split("&")
        .filter((parameter) => {
          for (const [name, value] of new URLSearchParams(parameter)) {
            if (value && CAMPAIGN.test(name)) campaign[name.toLowerCase()] ??= cut("name", value);
            return query === "keep" ? !FOREIGN.test(name) : query !== "drop" && query.includes(name);
          }
        })
        .join("&");
    url.username = url.password = "";
    url.search = filter(url.search.slice(1));
    // `#/route?name=value`, or only parameters: `#access_token=…`
    const fragment = hash ? url.hash.slice(1) : "";
    const [route, ...parameters] = /^[^/?]+=/.test(fragment) ? ["", fragment] : fragment.split("?");
    url.hash = [route, filter(parameters.join("?"))].filter(Boolean).join("?");

    const path = url.pathname + url.hash;
    return url.origin === location.origin && excluded.some((pattern) => pattern.test(path)) ? "" : url.href;
  };
}
