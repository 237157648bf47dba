/** Steer in the editor: each node shows the text of its last run, and a warning is shown as one. */
import { app } from '../../scripts/app.js'

const NAME = 'steer_report'
const MARGIN = 8 // pixels around the text

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

function show(node, output) {
    const text = lines(output, 'text'), warning = lines(output, 'steer_warning')
    if (!text) return
    const { element } = reportOf(node)
    element.textContent = warning && !text.startsWith(warning) ? `${warning}\n\n${text}` : text
    element.style.borderLeft = warning ? '4px solid #e5a50a' : ''
    node.graph?.setDirtyCanvas(true, true)
}

function warn(node, output) {
    const detail = lines(output, 'steer_warning')
    if (detail) app.extensionManager?.toast?.add({ severity: 'warn', summary: node.title, detail })
}

/** The node of the open graph, or of a subgraph of it, that outputs are kept under. */
function nodeAt(locator) {
    const graph = app.rootGraph ?? app.graph, [inside, id] = locator.split(':')
    return id === undefined ? graph.getNodeById(locator) : graph.subgraphs?.get(inside)?.getNodeById(id)
}

app.registerExtension({
    name: 'Steer.Reports',
    beforeRegisterNodeDef(nodeType, { name }) {
        if (!name.startsWith('Steer')) return
        const before = nodeType.prototype.onExecuted
        nodeType.prototype.onExecuted = function (output) {
            before?.call(this, output)
            show(this, output)
            warn(this, output)
        }
    },
    /** After a reload, and when a tab is opened again. */
    onNodeOutputsUpdated(outputs) {
        for (const [locator, output] of Object.entries(outputs)) {
            const node = nodeAt(locator)
            if (node?.type?.startsWith('Steer')) show(node, output)
        }
    },
})
