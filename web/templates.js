/** The templates of this package: listed in the order of their numbers, and whole where the host lacks a node. */
import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'

const list = api.getWorkflowTemplates?.bind(api) // of each package, in any order
if (list)
    api.getWorkflowTemplates = async () => {
        const packages = await list()
        for (const names of Object.values(packages)) if (names.some((name) => name.startsWith('Steer 01'))) names.sort()
        return packages
    }

app.registerExtension({
    name: 'Steer.Templates',
    /** Leaves out the nodes that a template marks as optional, where the host does not have them. */
    beforeConfigureGraph(data) {
        const lacking = ({ type, properties }) => properties?.steer_optional && !(type in LiteGraph.registered_node_types)
        const gone = new Set((data.nodes ?? []).filter(lacking).map(({ id }) => id))
        if (!gone.size) return
        data.nodes = data.nodes.filter(({ id }) => !gone.has(id))
        data.links = data.links.filter(([, , , target]) => !gone.has(target))
        const left = new Set(data.links.map(([id]) => id))
        for (const output of data.nodes.flatMap(({ outputs }) => outputs ?? []))
            output.links = output.links?.filter((id) => left.has(id))
    },
})
