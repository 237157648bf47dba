/** Steer in the editor: each node shows the text of its last run; a warning and an error are told where they are seen. */
import { app } from '../../scripts/app.js'
import { api } from '../../scripts/api.js'

const NAME = 'steer_report'
const MARGIN = 8 // pixels around the text
const LIFE = 12000 // milliseconds that an error is shown
const PROGRESS = '$$node-text-preview' // the host's own widget for the text of a node that runs

/** What a node sent as its output's `key`, as lines. */
const lines = (output, key) => [output?.[key] ?? []].flat().join('\n')

/** The text in the node; it is no part of the workflow, nor of what is queued. */
function reportOf(node) {
    const found = node.widgets?.find(({ name }) => name === NAME)
    if (found) return found
    const element = document.createElement('div')
    element.style.cssText = `overflow: auto; white-space: pre-wrap; font: 12px sans-serif; user-select: text;
        box-sizing: border-box; max-height: 240px; padding: ${MARGIN}px; color: var(--input-text); background: var(--comfy-input-bg)`
    const widget = node.addDOMWidget(NAME, 'steer_report', element, {
        serialize: false, hideOnZoom: false, getValue: () => element.textContent, getMinHeight: () => 72,
    })
    widget.serialize = false
    const [width, height] = node.computeSize()
    node.setSize([Math.max(width, node.size[0]), Math.max(height, node.size[1])])
    return widget
}

/** The first paragraph of a text, and the others folded behind it. */
function folded(text) {
    const [first, ...others] = text.split('\n\n')
    if (!others.length) return [first]
    const rest = document.createElement('details'), title = document.createElement('summary')
    title.textContent = 'more'
    title.style.cursor = 'pointer'
    rest.append(title, others.join('\n\n'))
    return [first, rest]
}

function show(node, output) {
    const text = lines(output, 'text'), warning = lines(output, 'steer_warning')
    if (!text) return
    const { element } = reportOf(node)
    element.replaceChildren(...folded(warning && !text.startsWith(warning) ? `${warning}\n\n${text}` : text))
    element.style.borderLeft = warning ? '4px solid #e5a50a' : ''
    node.graph?.setDirtyCanvas(true, true)
}

/** The pictures that a node made take the place of the live preview of its run, which the classic canvas would keep. */
function showPictures(node, output) {
    if (!output?.images?.length) return
    const { graph } = node, locator = graph?.isRootGraph === false ? `${graph.id}:${node.id}` : String(node.id)
    const stores = document.getElementById('vue-app')?.__vue_app__?.config.globalProperties.$pinia?._s
    stores?.get('nodeOutput')?.revokePreviewsByLocatorId?.(locator)
    delete app.nodePreviewImages?.[locator] // older editors have no more than this
    graph?.setDirtyCanvas(true, true)
}

const toasts = [] // of the last run
function toast(message) {
    app.extensionManager?.toast?.add(message)
    toasts.push(message)
}
const clearToasts = () => toasts.splice(0).forEach(message => app.extensionManager?.toast?.remove?.(message))

function warn(node, output) {
    const detail = lines(output, 'steer_warning')
    if (detail) toast({ severity: 'warn', summary: node.title, detail })
}

/** An error that a Steer node raised, in whatever node it came out: which one, and what would work. */
function tellError({ exception_message }) {
    const [, type, detail] = /^(Steer\w+): ([^]*)/.exec(exception_message ?? '') ?? []
    if (!type) return
    const summary = LiteGraph.registered_node_types[type]?.title ?? type
    toast({ severity: 'error', summary, detail: detail.trim(), life: LIFE })
}

/** Of the inputs that a Steer node's check looks at the host marks all: keeps the one that the message begins with. */
function keepAtFault(nodeErrors) {
    for (const { class_type, errors } of Object.values(nodeErrors ?? {})) {
        if (!class_type?.startsWith('Steer')) continue
        const inputs = errors.map(({ extra_info }) => extra_info?.input_name)
        const kept = errors.filter(({ details, extra_info }) => {
            const [, named] = /^\w+ - (?:Steer\w+: )?(\w+)/.exec(details) ?? []
            return named === extra_info?.input_name || !inputs.includes(named)
        })
        errors.splice(0, errors.length, ...kept)
    }
}

/** Takes away progress texts, which the host leaves for good on the node of that number in whatever graph is open. */
function clearProgress(which) {
    const root = app.rootGraph ?? app.graph
    for (const node of [root, ...(root.subgraphs?.values() ?? [])].flatMap(graph => graph.nodes)) {
        const at = node.widgets?.findIndex(({ name, value }) => name === PROGRESS && which.test(value)) ?? -1
        if (at < 0) continue
        node.widgets[at].onRemove?.()
        node.widgets.splice(at, 1)
        node.setDirtyCanvas?.(true, true)
    }
}

/** The node of the open graph, or of a subgraph of it, that outputs are kept under. */
function nodeAt(locator) {
    const graph = app.rootGraph ?? app.graph, [inside, id] = locator.split(':')
    return id === undefined ? graph.getNodeById(locator) : graph.subgraphs?.get(inside)?.getNodeById(id)
}

/** A queued graph to compare by: what changes by itself from run to run is left out. */
const compared = prompt => JSON.stringify(prompt, (key, value) => /seed$|^preview/.test(key) ? undefined : value)

/**
 * After a page reload: what the last run of the open graph came to, which the host has kept and the editor has not.
 * Only of this very graph: a template that is opened anew has the id of the one that was run and changed before.
 */
async function showLastRun() {
    const root = app.rootGraph ?? app.graph
    const history = await (await api.fetchApi('/history?max_items=20')).json()
    const last = Object.values(history).filter(({ prompt }) => prompt[3]?.extra_pnginfo?.workflow?.id === root.id).at(-1)
    if (!last || compared(last.prompt[2]) !== compared((await app.graphToPrompt()).output)) return
    for (const [id, output] of Object.entries(last.outputs)) {
        if (!root.getNodeById(id)?.type?.startsWith('Steer')) continue
        const told = { node: id, display_node: id, output, prompt_id: last.prompt[1] }
        api.dispatchEvent(new CustomEvent('executed', { detail: told })) // the editor then draws it as after a run
    }
}

app.registerExtension({
    name: 'Steer.Reports',
    setup() {
        const { queuePrompt } = api
        api.queuePrompt = async function (...given) {
            try {
                const answer = await queuePrompt.apply(this, given)
                keepAtFault(answer?.node_errors)
                return answer
            } catch (error) {
                keepAtFault(error?.response?.node_errors)
                throw error
            }
        }
        api.addEventListener('execution_error', ({ detail }) => tellError(detail))
        api.addEventListener('execution_start', () => {
            clearToasts()
            clearProgress(/^Steer\w+: /)
        })
        for (const end of ['execution_success', 'execution_error', 'execution_interrupted'])
            api.addEventListener(end, () => clearProgress(/^Steer\w+: \w+ \d+ of \d+, /)) // a warning stays
    },
    beforeRegisterNodeDef(nodeType, { name }) {
        if (!name.startsWith('Steer')) return
        const before = nodeType.prototype.onExecuted
        nodeType.prototype.onExecuted = function (output) {
            before?.call(this, output)
            show(this, output)
            showPictures(this, output)
            warn(this, output)
        }
    },
    /** When a graph has opened; one in a tab that is opened again has its outputs already. */
    afterConfigureGraph() {
        const { nodes } = app.rootGraph ?? app.graph
        const ours = nodes.filter(({ type }) => type?.startsWith('Steer'))
        if (ours.length && !ours.some(({ id }) => app.nodeOutputs?.[id])) showLastRun().catch(() => {}) // the graph is of use without it
    },
    /** When a tab is opened again. */
    onNodeOutputsUpdated(outputs) {
        for (const [locator, output] of Object.entries(outputs)) {
            const node = nodeAt(locator)
            if (node?.type?.startsWith('Steer')) show(node, output)
        }
    },
})
