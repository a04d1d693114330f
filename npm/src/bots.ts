// Automated browsers, and the user agents of programs that read pages. The cases in sdk/tests/wire/bots.json say what the
// result must be, in every language.

/** "Cubot" is a phone. Most crawlers are "compatible" or have an address after a `+`; browsers have neither. */
const BOT =
  /(^|[^u])bot|crawl|spider|compatible;|headless|lighthouse|jsdom|cypress|ptst|preview|\+http|^(curl|wget|python|go-)/i;

/** Whether a user agent is that of a program and not of a person's browser. */
export const isBotAgent = (agent: string): boolean => BOT.test(agent);

/** Whether this browser is driven by a program. */
export const isBot = (): boolean => navigator.webdriver || isBotAgent(navigator.userAgent);
